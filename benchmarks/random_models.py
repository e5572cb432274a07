"""Models of real and of scaled-down sizes with random weights: speed and memory do not depend on what they are."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, SiglipConfig, SiglipModel

from dcr_hf import FrozenDenoiser
from dcr_hf.config import DCRConfig
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import FAMILIES
from dcr_hf.models.projector import Projector
from dcr_hf.training.stages import encoder_stage, projector_stage


@dataclass(frozen=True)
class Size:
    """A Stable Diffusion by its widths; all else is as in SD 2.1."""

    unet: tuple[int, ...]
    heads: tuple[int, ...]
    condition: int
    vae: tuple[int, ...]
    text_layers: int
    layers_a_block: int = 2


SIZES = {
    "sd21": Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), 23),
    "small": Size((32, 64, 128, 128), (1, 2, 4, 4), 128, (32, 32, 32, 32), 2),
    "tiny": Size((32, 32, 32, 32), (1, 1, 1, 1), 64, (32, 32, 32, 32), 1, layers_a_block=1),
}

# hidden size, layers, heads, intermediate size, patch size, projection (CLIP only)
CLIP_VISION = {
    "vitl": (1024, 24, 16, 4096, 14, 768),
    "vith": (1280, 32, 16, 5120, 14, 1024),
    "small": (128, 4, 2, 512, 16, 64),
    "tiny": (64, 2, 1, 128, 16, 32),
}
SIGLIP_VISION = {"siglip": (1152, 27, 16, 4304, 14)}
ENCODERS = (*CLIP_VISION, *SIGLIP_VISION)


def random_unet(size: Size, dtype: torch.dtype) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=size.unet,
        attention_head_dim=size.heads,
        cross_attention_dim=size.condition,
        layers_per_block=size.layers_a_block,
        use_linear_projection=True,
    )
    return unet.to(dtype).eval().requires_grad_(False)  # type: ignore[attr-defined]  # diffusers wraps it


def random_denoiser(
    size: Size, unet: UNet2DConditionModel, empty_prompt: torch.Tensor, pair_chunk_size: int | str = 0
) -> FrozenDenoiser:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.vae,
        layers_per_block=size.layers_a_block,
        latent_channels=4,
    )
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return FrozenDenoiser(unet, vae.to(unet.dtype), scheduler, empty_prompt, pair_chunk_size=pair_chunk_size)  # type: ignore[attr-defined]  # diffusers wraps it


def random_text_encoder(size: Size, dtype: torch.dtype) -> CLIPTextModel:
    width = size.condition
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=width // 64,
    )
    return CLIPTextModel(config).to(dtype).eval().requires_grad_(False)


def random_encoder(name: str, image_size: int) -> ImageEncoder:
    """A CLIP or SigLIP vision side; the text side, which training drops, is tiny."""
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    if name in CLIP_VISION:
        *tower, patch, projection = CLIP_VISION[name]
        config_class, model_class, family = CLIPConfig, CLIPModel, FAMILIES["clip"]
        extra = {"projection_dim": projection}
    else:
        *tower, patch = SIGLIP_VISION[name]
        config_class, model_class, family, extra = SiglipConfig, SiglipModel, FAMILIES["siglip"], {}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision = {**dict(zip(names, tower, strict=True)), "image_size": image_size, "patch_size": patch}
    model = model_class(config_class(text_config=text, vision_config=vision, **extra))
    return ImageEncoder(model, family, [0.5] * 3, [0.5] * 3)


def random_model(name: str, image_size: int, condition_width: int, args: DCRConfig, stage: int = 2) -> ConditionModel:
    """Encoder and projector as stage 1 or 2 trains them."""
    encoder = random_encoder(name, image_size)
    if stage == 1:
        return projector_stage(encoder, condition_width, args.seed)
    return encoder_stage(encoder, Projector(encoder.embedding_width, condition_width), args)
