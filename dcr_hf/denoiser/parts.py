"""UNet, VAE and noise schedule of a Stable Diffusion folder or id, complete or refused, on the CPU."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from dcr_hf.errors import as_user_error
from dcr_hf.hub import local_folder, model_folder
from dcr_hf.models.loading import check_complete

Part = TypeVar("Part", bound=ModelMixin)
SIDE_FILES = ("model_index.json", "*/*.json", "tokenizer*/*")
"""What a Stable Diffusion has beside its weights."""


def pipeline_folder(path_or_id: str) -> Path:
    """The folder of a Stable Diffusion with its configurations and tokenizers. Raises as `local_folder`."""
    return local_folder(path_or_id, SIDE_FILES, "denoiser")


def load_unet(path_or_id: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet.

    Raises:
        NotFoundError: no weights.
        UserError: broken or missing weights, or some of another shape than the configuration's.
    """
    return _load(UNet2DConditionModel, path_or_id, "unet", dtype)


def load_vae(path_or_id: str, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE; in float32 in place of float16 where its configuration asks for it (`force_upcast`).

    Raises:
        UserError: as `load_unet`.
    """
    with as_user_error(f"denoiser {path_or_id!r}: vae", OSError, ValueError):
        config = AutoencoderKL.load_config(pipeline_folder(path_or_id), subfolder="vae")
    if config.get("force_upcast", False) and dtype == torch.float16:  # older files have no such field
        dtype = torch.float32
    return _load(AutoencoderKL, path_or_id, "vae", dtype)


def load_scheduler(path_or_id: str) -> DDPMScheduler:
    """The noise schedule.

    Raises:
        UserError: its configuration is broken.
    """
    with as_user_error(f"denoiser {path_or_id!r}: scheduler", OSError, ValueError):
        return DDPMScheduler.from_pretrained(pipeline_folder(path_or_id), subfolder="scheduler")


def _load(part_class: type[Part], path_or_id: str, part: str, dtype: torch.dtype) -> Part:
    who = f"denoiser {path_or_id!r}: {part}"
    folder, weights = model_folder(path_or_id, part, "denoiser")
    with as_user_error(who, OSError, ValueError):
        loaded = part_class.from_pretrained(
            folder,
            subfolder=part,
            torch_dtype=dtype,
            variant=weights.variant,
            use_safetensors=weights.safetensors,  # pickled ones are read with weights_only
            output_loading_info=True,
        )
    model, report = cast(tuple[Part, dict[str, Any]], loaded)
    check_complete(who, report)  # diffusers would only warn
    return model
