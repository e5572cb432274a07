"""OpenAI-format names, layouts and sizes -> those of transformers' CLIPModel."""

import re
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionConfig, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dcr_hf.convert.state_dict import read_state_dict
from dcr_hf.errors import UserError, as_user_error
from dcr_hf.hub import local_folder
from dcr_hf.models.families import read_encoder_config
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.reading import SIDE_FILE_ERRORS

# The format does not store the number of heads: 64 channels each, except in the vision towers of open_clip's ViT-H, g,
# bigG and e. Text towers of the same widths have 64 (bigG: 20 heads).
HEAD_WIDTH = 64
VISION_HEADS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")  # stored for x @ W


def convert_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names and layouts -> transformers' CLIPModel.

    Raises:
        UserError: a name that OpenAI's format does not have: the weight would be lost silently.
    """
    converted, unknown = {}, []
    for name, value in weights.items():
        if name in _VISION or name in _TEXT:
            converted[(_VISION | _TEXT)[name]] = value.T.contiguous() if name in _TRANSPOSED else value
            continue
        match = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name)
        if match is None or match[3] not in (*_LAYER, "attn.in_proj"):
            unknown.append(name)
            continue
        layer = f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}"
        if match[3] == "attn.in_proj":
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                converted[f"{layer}.self_attn.{part}_proj.{match[4]}"] = chunk.clone()
        else:
            converted[f"{layer}.{_LAYER[match[3]]}.{match[4]}"] = value
    if unknown:
        raise UserError(f"{len(unknown)} weights are not of OpenAI's format, such as {unknown[0]}: nothing converted.")
    return converted


def infer_config(weights: dict[str, Tensor], activation: str) -> CLIPConfig:
    """The configuration, by the weights' shapes; `weights` have OpenAI's names, text tower included."""
    heads = VISION_HEADS.get(weights["visual.class_embedding"].shape[0])
    patches, width = weights["visual.positional_embedding"].shape
    patch = weights["visual.conv1.weight"].shape[-1]
    length, text_width = weights["positional_embedding"].shape
    vocabulary = len(weights["token_embedding.weight"])
    return CLIPConfig(
        projection_dim=weights["visual.proj"].shape[1],
        vision_config={
            "hidden_size": width,
            "image_size": patch * round((patches - 1) ** 0.5),
            "patch_size": patch,
            **_tower(weights, "visual.transformer.", width, activation, heads),
        },
        text_config={
            "hidden_size": text_width,
            "max_position_embeddings": length,
            "vocab_size": vocabulary,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
            **_tower(weights, "transformer.", text_width, activation),
        },
    )


def _tower(
    weights: dict[str, Tensor], prefix: str, width: int, activation: str, heads: int | None = None
) -> dict[str, Any]:
    layers = {name.removeprefix(prefix).split(".")[1] for name in weights if name.startswith(f"{prefix}resblocks.")}
    return {
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or max(1, width // HEAD_WIDTH),
        "intermediate_size": len(weights[f"{prefix}resblocks.0.mlp.c_fc.weight"]),
        "hidden_act": activation,
    }


def convert(path: Path, output_dir: Path, base: str, activation: str | None = None) -> PreTrainedModel:
    """Write a CLIPModel folder with image processor and tokenizer; returns the model.

    Args:
        base: CLIP folder or hub id that gives the tokenizer; the text side, if the file has none; and the activation.
        activation: `quick_gelu` for OpenAI's and MetaCLIP's models and those tuned from them, else `gelu`; None takes
            the base's.

    Raises:
        NotFoundError, UserError: as `read_state_dict` and `convert_names`; also if the two sides do not fit, or the
            activation is not given and the base is of another size.
    """
    from transformers import CLIPImageProcessor  # prints a warning when imported

    folder = local_folder(base, what="--base")
    base_config, _ = read_encoder_config(base)
    if not isinstance(base_config, CLIPConfig):
        raise UserError(f"--base {base!r} is a {base_config.model_type!r}; a CLIP is needed.")
    weights = read_state_dict(path)
    converted = convert_names(weights)
    activation = activation or _activation_of(base, base_config, weights)
    with as_user_error(f"--base {base!r}: tokenizer", *SIDE_FILE_ERRORS):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if "token_embedding.weight" in weights:
        model: PreTrainedModel = CLIPModel(infer_config(weights, activation))
    else:
        cast(CLIPVisionConfig, base_config.vision_config).hidden_act = activation
        model = CLIPModel(base_config)
        model.load_state_dict(load_dual_encoder(base).state_dict())
    state = model.state_dict()
    missing = [name for name in state if name not in converted]
    if "token_embedding.weight" not in weights:
        missing = [name for name in missing if name.startswith(("vision_model.", "visual_projection."))]
    wrong = [name for name, value in converted.items() if name not in state or state[name].shape != value.shape]
    if missing or wrong:
        name = (missing or wrong)[0]
        what = "is missing" if missing else f"has shape {tuple(converted[name].shape)}"
        raise UserError(f"{path} does not make a complete CLIP model with {base}'s text side: {name} {what}.")
    model.load_state_dict({**state, **converted})
    model.save_pretrained(output_dir)
    side = model.config.vision_config.image_size
    CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    ).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return model.eval()


def _activation_of(base: str, config: CLIPConfig, weights: dict[str, Tensor]) -> str:
    """The base's, if it is a model of the same size: the weights do not say."""
    width, vision = weights["visual.class_embedding"].shape[0], cast(CLIPVisionConfig, config.vision_config)
    is_whole = "token_embedding.weight" in weights
    if is_whole and vision.hidden_size != width:
        raise UserError(
            f"the vision tower is {width} wide and that of --base {base!r} {vision.hidden_size}: it "
            "cannot say what the file does not hold, its activation. Give the --base that the weights "
            "were tuned from, or --activation: quick_gelu for OpenAI's and MetaCLIP's models, gelu for most others."
        )
    return str(vision.hidden_act)
