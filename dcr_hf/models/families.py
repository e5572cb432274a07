"""CLIP families: what differs between them, and the checks of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from transformers import (
    CLIPModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipModel,
    SiglipVisionModel,
)

# Not from transformers itself, which in 5.17 gives one that raises an error where torchvision is not installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.hub import check_weights, file_names, local_folder
from dcr_hf.models.reading import SIDE_FILE_ERRORS, read_config

_LAYER_LINEARS = r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"


@dataclass(frozen=True)
class Family:
    """What differs between two kinds of dual encoder; everything else is read from the checkpoint."""

    dual_class: type[PreTrainedModel]
    vision_class: type[PreTrainedModel]
    layer: str
    """Class name of a transformer layer: the unit that FSDP shards."""
    lora_targets: str
    """Regular expression over module names: every linear layer between the pixels and z that gets a gradient."""
    bias_only_targets: str | None
    """As `lora_targets`: layers whose weights have no gradient through an adapter, but whose bias has one."""
    non_vision_modules: tuple[str, ...]
    """Modules and parameters of the dual encoder that images do not pass."""
    class_tokens: int
    """How many of the vision tower's last hidden states precede the patches'."""
    export_prefixes: tuple[str, ...]
    """Prefixes of the weights that an export may change: the vision side."""


# SigLIP pools with nn.MultiheadAttention, which reads the weights of its `out_proj` without calling the layer: an
# adapter there would never see an input.
FAMILIES = {
    "clip": Family(
        dual_class=CLIPModel,
        vision_class=CLIPVisionModel,
        layer="CLIPEncoderLayer",
        lora_targets=rf"{_LAYER_LINEARS}|visual_projection",
        bias_only_targets=None,
        non_vision_modules=("text_model", "text_projection", "logit_scale"),
        class_tokens=1,
        export_prefixes=("vision_model.", "visual_projection."),
    ),
    "siglip": Family(
        dual_class=SiglipModel,
        vision_class=SiglipVisionModel,
        layer="SiglipEncoderLayer",
        lora_targets=rf"{_LAYER_LINEARS}|vision_model\.head\.mlp\.(fc1|fc2)",
        # Attention of torch's own reads the weights of this layer past an adapter.
        bias_only_targets=r"vision_model\.head\.attention\.out_proj",
        non_vision_modules=("text_model", "logit_scale", "logit_bias"),
        class_tokens=0,
        export_prefixes=("vision_model.",),
    ),
}

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")


def read_encoder_config(path_or_id: str) -> tuple[PreTrainedConfig, Family]:
    """The checkpoint's configuration and its family, by `model_type`. Reads no weights."""
    config = read_config(
        f"encoder {path_or_id!r}",
        local_folder(path_or_id, what="encoder"),
        "it is not a folder that transformers' save_pretrained wrote.",
    )
    if config.model_type not in FAMILIES:
        raise UserError(
            f"encoder {path_or_id!r} is a {config.model_type!r} model; supported are {', '.join(FAMILIES)} (the "
            "complete dual encoder, text tower included, not the vision tower alone)."
        )
    return config, FAMILIES[config.model_type]


class ImageProcessor(Protocol):
    """What is read of the families' image processors."""

    size: dict[str, int]
    crop_size: dict[str, int] | None
    image_mean: list[float]
    image_std: list[float]
    resample: int


def read_image_processor(who: str, path: str | Path, side: int, backend: str | None = None) -> ImageProcessor:
    """The image processor of a folder or id, checked to make images of the vision tower's size.

    Args:
        who: whose it is, for the message.
        side: what the vision tower takes, in pixels.
        backend: of transformers; by default its choice.

    Raises:
        UserError: missing or broken; another size than the tower's.
    """
    with as_user_error(f"{who}: image processor", *SIDE_FILE_ERRORS):
        loaded = AutoImageProcessor.from_pretrained(path, **({"backend": backend} if backend else {}))
    processor = cast(ImageProcessor, loaded)
    check_image_size(who, processor, side)
    return processor


def check_image_size(who: str, processor: ImageProcessor, side: int) -> None:
    """Raise a UserError unless the processor makes images of `side` pixels, which the vision tower takes."""
    crops = getattr(processor, "do_center_crop", True) and processor.crop_size
    size = crops or processor.size
    made = size.get("height", size.get("shortest_edge"))
    if made != side:
        raise UserError(
            f"{who}: its image processor makes {made} pixels, its vision tower takes {side}. Correct "
            "preprocessor_config.json."
        )


def embedding_width(config: PreTrainedConfig) -> int:
    """D, the width of z: CLIP projects its pooled output, SigLIP's is z itself."""
    return config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size


def patch_width(config: PreTrainedConfig) -> int:
    """W, the width of the vision tower's hidden states."""
    return config.vision_config.hidden_size


def check_encoder(path_or_id: str) -> int:
    """Raise if the checkpoint lacks what training or the export needs; loads no weights.

    Returns:
        D, the width of its embeddings.

    Raises:
        NotFoundError: configuration, weights, image processor or tokenizer missing.
        UserError: no CLIP or SigLIP; an image size that the denoiser's VAE cannot take.
    """
    config, _ = read_encoder_config(path_or_id)
    names = file_names(path_or_id, "encoder")
    wanted = {
        "an image processor": ("preprocessor_config.json", "processor_config.json"),
        "a tokenizer": _TOKENIZER_FILES,
    }
    for what, files in wanted.items():
        if not set(files) & set(names):
            raise NotFoundError(f"encoder {path_or_id!r} lacks {what}: none of {', '.join(files)} is in it.")
    check_weights(path_or_id, what="encoder")
    if config.vision_config.image_size % 8:
        raise UserError(
            f"encoder {path_or_id!r} takes images of {config.vision_config.image_size} pixels, which is no multiple "
            "of 8: the denoiser's VAE cannot encode them."
        )
    return embedding_width(config)
