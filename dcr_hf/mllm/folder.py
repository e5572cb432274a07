"""Is a folder a LLaVA-1.5 in transformers' format, and does its processor fit its tower? Found out without weights."""

from pathlib import Path

from transformers import AutoProcessor, LlavaConfig, LlavaProcessor, PreTrainedConfig

from dcr_hf.encoder import local_folder


def find(name: str, path: str) -> Path:
    """The folder itself, or the hub repository's small files."""
    try:
        return local_folder(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"model {name}: {path} cannot be read: {error}") from error


def is_local(path: str) -> bool:
    return Path(path).expanduser().is_dir()


def read_config(name: str, path: str, folder: Path) -> LlavaConfig:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {name}: {path} has no config.json: it is no folder of save_pretrained.")
    raw, _ = PreTrainedConfig.get_config_dict(folder)
    kind = raw.get("model_type", "untyped")
    if kind == "llava_llama" or (kind == "llava" and "text_config" not in raw):
        raise ValueError(
            f"model {name}: {path} is in the format of LLaVA's own code. Give transformers' version of it, such as "
            "llava-hf/llava-1.5-7b-hf, or convert it with transformers' convert_llava_weights_to_hf.py."
        )
    if kind != "llava":
        raise ValueError(
            f"model {name}: {path} is a {kind!r} model; supported is LLaVA-1.5 in transformers' format (model_type "
            "'llava'), such as llava-hf/llava-1.5-7b-hf."
        )
    if is_local(path) and not any(folder.glob("model*.safetensors")):
        raise FileNotFoundError(f"model {name}: {path} has no model*.safetensors, the only weights that are read.")
    return LlavaConfig.from_pretrained(folder)


def read_processor(name: str, path: str, folder: Path, config: LlavaConfig) -> LlavaProcessor:
    try:
        # Always the PIL backend: with torchvision installed the default resizes differently in the last digits.
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name}: {path} has no usable processor: {error}") from None
    if not isinstance(processor, LlavaProcessor):
        raise ValueError(
            f"model {name}: {path} has no LlavaProcessor but a {type(processor).__name__}: processor_config.json, "
            "preprocessor_config.json or the tokenizer is missing."
        )
    vision, images = config.vision_config, processor.image_processor
    size = images.crop_size or images.size
    found = {
        "image size": size["height"],
        "patch_size": processor.patch_size,
        "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        "num_additional_image_tokens": processor.num_additional_image_tokens,
    }
    class_tokens = int(vision.model_type == "clip_vision_model")
    needed = (vision.image_size, vision.patch_size, config.vision_feature_select_strategy, class_tokens)
    for (what, value), wanted in zip(found.items(), needed, strict=True):
        if value != wanted:
            raise ValueError(
                f"model {name}: its processor has {what} {value!r}, its configuration needs {wanted!r}: image tokens "
                f"would not match the tower's features. Correct processor_config.json in {path}."
            )
    return processor
