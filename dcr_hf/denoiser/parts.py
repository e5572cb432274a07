"""UNet, VAE and noise schedule of a Stable Diffusion folder or id, complete or refused, on the CPU."""

from typing import Any, TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from dcr_hf.errors import as_user_error
from dcr_hf.models.loading import check_complete

Part = TypeVar("Part", bound=ModelMixin)


def load_unet(path_or_id: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet.

    Raises:
        UserError: no safetensors; broken or missing weights, or some of another shape than the configuration's.
    """
    return _load(UNet2DConditionModel, path_or_id, "unet", dtype)


def load_vae(path_or_id: str, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE; in float32 in place of float16 where its configuration asks for it (`force_upcast`).

    Raises:
        UserError: as `load_unet`.
    """
    with as_user_error(f"denoiser {path_or_id!r}: vae", OSError, ValueError):
        config = AutoencoderKL.load_config(path_or_id, subfolder="vae")
    if config.get("force_upcast", False) and dtype == torch.float16:  # older files have no such field
        dtype = torch.float32
    return _load(AutoencoderKL, path_or_id, "vae", dtype)


def load_scheduler(path_or_id: str) -> DDPMScheduler:
    """The noise schedule.

    Raises:
        UserError: its configuration is broken.
    """
    with as_user_error(f"denoiser {path_or_id!r}: scheduler", OSError, ValueError):
        return DDPMScheduler.from_pretrained(path_or_id, subfolder="scheduler")


def _load(part_class: type[Part], path_or_id: str, part: str, dtype: torch.dtype) -> Part:
    who = f"denoiser {path_or_id!r}: {part}"
    with as_user_error(who, OSError, ValueError):
        loaded = part_class.from_pretrained(
            path_or_id, subfolder=part, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    model, report = cast(tuple[Part, dict[str, Any]], loaded)
    check_complete(who, report)  # diffusers would only warn
    return model
