"""A Stable Diffusion folder or id: what it must hold, what it was trained to predict, its empty prompt."""

import json

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dcr_hf.encoder import local_folder

_TARGET_OF_PREDICTION_TYPE = {"epsilon": "epsilon", "v_prediction": "velocity"}
_PARTS = ("unet", "vae", "scheduler", "tokenizer", "text_encoder")


def check_denoiser(path_or_id: str) -> int:
    """Raise, before any weights are read, unless this is a Stable Diffusion 1.x or 2.x pipeline folder or id.

    Returns:
        C, the width of its conditions.

    Raises:
        FileNotFoundError: parts of the pipeline are missing.
        ValueError: another pipeline, or a scheduler with an unknown prediction type.
    """
    folder = local_folder(path_or_id, ["model_index.json", "*/*.json", "tokenizer/*"])
    index_file = folder / "model_index.json"
    index = json.loads(index_file.read_text()) if index_file.is_file() else {}
    if "text_encoder_2" in index or (folder / "text_encoder_2").is_dir():
        raise ValueError(
            f"denoiser {path_or_id!r} is a Stable Diffusion XL ({index.get('_class_name', 'two text encoders')}): its "
            "UNet also needs a pooled prompt and time ids. Supported are Stable Diffusion 1.x and 2.x."
        )
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"denoiser {path_or_id!r} lacks {', '.join(missing)}. Expected is a Stable Diffusion 1.x or 2.x folder as "
            f"diffusers writes it, with {', '.join(_PARTS)}."
        )
    unet = json.loads((folder / "unet" / "config.json").read_text())
    if unet["_class_name"] != "UNet2DConditionModel" or unet["in_channels"] != 4:
        raise ValueError(
            f"denoiser {path_or_id!r} has a {unet['_class_name']} with {unet['in_channels']} input channels; "
            "supported is Stable Diffusion's UNet2DConditionModel with 4 (no inpainting or depth model)."
        )
    native_target(path_or_id, json.loads((folder / "scheduler" / "scheduler_config.json").read_text()))
    return unet["cross_attention_dim"]


def native_target(path_or_id: str, scheduler_config: dict) -> str:
    """ "epsilon" or "velocity", by the scheduler's `prediction_type`."""
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in _TARGET_OF_PREDICTION_TYPE:
        raise ValueError(
            f"denoiser {path_or_id!r}: its scheduler's prediction_type is {prediction_type!r}; supported are "
            f"{', '.join(_TARGET_OF_PREDICTION_TYPE)}."
        )
    return _TARGET_OF_PREDICTION_TYPE[prediction_type]


@torch.no_grad()
def embed_empty_prompt(path_or_id: str) -> Tensor:
    """E (1, 77, C) of the denoiser's own text encoder, which is dropped afterwards: E never changes."""
    tokenizer = CLIPTokenizer.from_pretrained(path_or_id, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(path_or_id, subfolder="text_encoder", dtype=torch.float32).eval()
    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids).last_hidden_state
