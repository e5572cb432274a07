"""A Stable Diffusion folder or id: its checks, its prediction target and its empty prompt."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dcr_hf.denoiser.parts import pipeline_folder
from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.hub import check_weights
from dcr_hf.models.loading import load_complete
from dcr_hf.models.reading import SIDE_FILE_ERRORS, read_json

SUPPORTED = "Stable Diffusion 1.x, 2.x and XL (base), in diffusers' layout"
_TARGET_OF_PREDICTION_TYPE = {"epsilon": "epsilon", "v_prediction": "velocity"}
_PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")
_XL_PARTS = (*_PARTS, "tokenizer_2", "text_encoder_2")
# Inputs of other pipelines' UNets, which are not supported; SD-XL's own is `addition_embed_type`.
_NO_INPUTS = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "encoder_hid_dim": None,
    "time_cond_proj_dim": None,
}
TIME_IDS = 6  # original height and width, top and left of the crop, target height and width


class EmptyPrompt(NamedTuple):
    """The denoiser's text inputs for an image without a caption."""

    tokens: Tensor
    """E (1, 77, C)"""
    token_norm: float
    """the mean norm of the text encoders' tokens of the empty prompt; that of E, unless E is zeros"""
    pooled: Tensor | None = None
    """(1, P), SD-XL's alone"""


def check_denoiser(path_or_id: str) -> int:
    """Raise unless this denoiser is `SUPPORTED`; reads no weights.

    Returns:
        C, the width of its conditions.

    Raises:
        NotFoundError: parts of the pipeline are missing.
        UserError: another pipeline, or one that was trained to predict something else.
    """
    folder = pipeline_folder(path_or_id)
    index = _read_index(folder)
    if "transformer" in index or (folder / "transformer").is_dir():
        raise UserError(
            f"denoiser {path_or_id!r} is a {index.get('_class_name', 'pipeline')} whose denoiser is a transformer, as "
            f"those of SD 3, Flux and PixArt are: it has no UNet to condition. Supported are {SUPPORTED}."
        )
    parts = _XL_PARTS if _is_xl(folder, index) else _PARTS
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        kind = f" ({index['_class_name']})" if "_class_name" in index else ""
        raise NotFoundError(
            f"denoiser {path_or_id!r}{kind} lacks {', '.join(missing)}. Expected is a folder with {', '.join(parts)}. "
            f"Supported are {SUPPORTED}."
        )
    unet = _read_config(folder / "unet" / "config.json")
    _check_unet(path_or_id, unet)
    _check_text_encoders(path_or_id, folder, unet)
    native_target(path_or_id, _read_config(folder / "scheduler" / "scheduler_config.json"))
    for part in parts:
        if part not in ("scheduler", "tokenizer", "tokenizer_2"):
            check_weights(path_or_id, part, "denoiser")
    return unet["cross_attention_dim"]


def _read_index(folder: Path) -> dict[str, Any]:
    return _read_config(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise NotFoundError(f"denoiser: {file} is missing, which diffusers' save_pretrained writes.")
    return read_json("denoiser", file)


def _is_xl(folder: Path, index: dict[str, Any]) -> bool:
    return "text_encoder_2" in index or (folder / "text_encoder_2").is_dir()


def _check_unet(path_or_id: str, unet: dict[str, Any]) -> None:
    kind, channels = unet.get("_class_name", "part without _class_name"), unet.get("in_channels", 4)
    if kind != "UNet2DConditionModel" or channels != 4:
        raise UserError(
            f"denoiser {path_or_id!r} has a {kind} with {channels} input channels; "
            f"supported is a UNet2DConditionModel with 4 (no inpainting or depth model): {SUPPORTED}."
        )
    odd = [f"{name} {unet[name]!r}" for name, value in _NO_INPUTS.items() if unet.get(name, value) != value]
    if unet.get("addition_embed_type") not in (None, "text_time"):
        odd.append(f"addition_embed_type {unet['addition_embed_type']!r}")
    if odd:
        raise UserError(
            f"denoiser {path_or_id!r} has a UNet that needs other inputs too ({', '.join(odd)}). Supported are "
            f"{SUPPORTED}."
        )


def _check_text_encoders(path_or_id: str, folder: Path, unet: dict[str, Any]) -> None:
    """Raise unless they are CLIP's, fit the UNet's width and, for SD-XL, the second one's pooled output fits too."""
    is_xl = unet.get("addition_embed_type") == "text_time"
    parts = ["text_encoder", "text_encoder_2"] if is_xl else ["text_encoder"]
    if (folder / "text_encoder_2").is_dir() != is_xl:
        raise UserError(
            f"denoiser {path_or_id!r}: its UNet's addition_embed_type is {unet.get('addition_embed_type')!r} and it "
            f"{'lacks' if is_xl else 'has'} a text_encoder_2. Supported are {SUPPORTED}."
        )
    configs = [_read_config(folder / part / "config.json") for part in parts]
    for part, config in zip(parts, configs, strict=True):
        if config.get("model_type") not in ("clip_text_model", "clip"):
            raise UserError(
                f"denoiser {path_or_id!r} has a {config.get('model_type')!r} model as {part}; supported are CLIP's "
                f"text encoders, which {SUPPORTED} have."
            )
    width, taken = sum(config.get("hidden_size", 0) for config in configs), unet.get("cross_attention_dim")
    if width != taken:
        raise UserError(
            f"denoiser {path_or_id!r}: its text encoders' tokens have width {width}, and its UNet takes {taken}. "
            f"Supported are {SUPPORTED}."
        )
    if is_xl:
        given = configs[1].get("projection_dim", 0) + TIME_IDS * unet.get("addition_time_embed_dim", 0)
        wanted = unet.get("projection_class_embeddings_input_dim")
        if given != wanted:  # SD-XL's refiner has an aesthetic score instead of the target's size
            raise UserError(
                f"denoiser {path_or_id!r}: its UNet takes {wanted} numbers beside the timestep, and a pooled prompt "
                f"and {TIME_IDS} time ids are {given}. SD-XL's base is supported, its refiner is not."
            )


def native_target(path_or_id: str, scheduler_config: dict) -> str:
    """ "epsilon" or "velocity", by the scheduler's `prediction_type`."""
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in _TARGET_OF_PREDICTION_TYPE:
        raise UserError(
            f"denoiser {path_or_id!r}: its scheduler's prediction_type is {prediction_type!r}; supported are "
            f"{', '.join(_TARGET_OF_PREDICTION_TYPE)}."
        )
    if "beta_schedule" not in scheduler_config and scheduler_config.get("trained_betas") is None:
        raise UserError(
            f"denoiser {path_or_id!r}: its {scheduler_config.get('_class_name', 'scheduler')} has no beta_schedule, "
            f"so that its noise is not that of DDPM. Supported are {SUPPORTED}."
        )
    return _TARGET_OF_PREDICTION_TYPE[prediction_type]


@torch.no_grad()
def embed_empty_prompt(path_or_id: str, mask_padding: bool = False) -> EmptyPrompt:
    """The denoiser's input for images without a caption, as it was trained; conditions are added to it.

    SD 1.x and 2.x were trained with the empty string in place of a tenth of the captions: E is their text encoder's
    output for it. SD-XL concatenates the last but one layers of two text encoders and also takes the pooled output of
    the second. It was trained with zeros in place of missing captions' embeddings. Where its `model_index.json` sets
    `force_zeros_for_empty_prompt`, E and the pooled prompt are zeros; where that is false, the encoded empty string.

    The text encoders are dropped afterwards: E never changes.

    Args:
        mask_padding: the text encoders do not attend to the tokens after the prompt's end, as in the released code;
            Stable Diffusion was trained without the mask, and diffusers has none.
    """
    folder = pipeline_folder(path_or_id)
    index = _read_index(folder)
    if not _is_xl(folder, index):
        tokens = _encode(path_or_id, "", CLIPTextModel, mask_padding).last_hidden_state
        return EmptyPrompt(tokens, _token_norm(tokens))
    first = _encode(path_or_id, "", CLIPTextModel, mask_padding)
    second = _encode(path_or_id, "_2", CLIPTextModelWithProjection, mask_padding)
    tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)  # (1, 77, C)
    norm, pooled = _token_norm(tokens), second.text_embeds
    if index.get("force_zeros_for_empty_prompt", True):  # diffusers' default too
        return EmptyPrompt(torch.zeros_like(tokens), norm, torch.zeros_like(pooled))
    return EmptyPrompt(tokens, norm, pooled)


def time_ids(latents: Tensor, scale: int) -> Tensor:
    """SD-XL's time ids (1, 6) of uncropped images: (height, width, top 0, left 0, height, width) in pixels.

    Args:
        latents: (B, 4, h, w).
        scale: pixels a latent's side.
    """
    height, width = (scale * side for side in latents.shape[-2:])
    # Filled on the device: a list would be copied there at every step.
    ids = [torch.full((1,), size, device=latents.device) for size in (height, width, 0, 0, height, width)]
    return torch.stack(ids, dim=1)


def _encode(
    path_or_id: str, suffix: str, kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], mask_padding: bool
):
    with as_user_error(f"denoiser {path_or_id!r}: tokenizer{suffix}", *SIDE_FILE_ERRORS):
        tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder(path_or_id), subfolder=f"tokenizer{suffix}")
    part = f"text_encoder{suffix}"
    model = load_complete(kind, "denoiser", path_or_id, torch.float32, part).eval()
    # Some tokenizers' files do not say how long a prompt is: 77 tokens, as many as the text encoder's positions.
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if mask_padding else None
    return model(tokens.input_ids, attention_mask=mask, output_hidden_states=True)


def _token_norm(tokens: Tensor) -> float:
    return tokens.norm(dim=-1).mean().item()
