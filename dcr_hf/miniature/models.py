"""The miniature's models in the layouts of the real ones: a CLIPModel folder, a Stable Diffusion folder."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from dcr_hf.miniature.captions import PROMPT, phrase
from dcr_hf.miniature.scenes import ATTRIBUTES, SHAPES

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

PREDICTION_TYPES = ("epsilon", "v_prediction")
CLIP_FOLDER = "clip-miniature"
CLIP_FOLDERS = {"coarse": CLIP_FOLDER, "fine": "clip-miniature-fine"}  # by the classes that its captions always name
DENOISER_FOLDERS = {"epsilon": "sd-miniature", "v_prediction": "sd-miniature-v"}
# What the package brings, `mini` of seed 1: clip-miniature, sd-miniature, sd-miniature-v and measured.json.
SHIPPED = Path(__file__).parent / "weights"
MAX_TOKENS = 32  # a full caption has 27
MEAN, STD = [0.51, 0.49, 0.47], [0.21, 0.21, 0.22]  # of the training draw, rounded


@dataclass(frozen=True)
class Size:
    """Widths and depths of one size of the miniature, and what its pretraining may cost."""

    image_size: int
    patch_size: int
    clip_width: int
    clip_layers: int
    clip_text_width: int
    clip_text_layers: int
    projection: int
    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    condition_width: int
    text_layers: int
    images: int
    clip_images: int  # the CLIP learns from the first of them: with all it would learn details wholly or not at all
    steps: dict[str, int]
    batch: dict[str, int]
    learning_rate: dict[str, float]


SIZES = {
    "mini": Size(
        image_size=32,
        patch_size=8,
        clip_width=128,
        clip_layers=4,
        clip_text_width=64,
        clip_text_layers=2,
        projection=64,
        vae_channels=(16, 32, 32),
        unet_channels=(32, 64),
        condition_width=64,
        text_layers=2,
        images=24_000,
        clip_images=2_500,
        steps={"clip": 1_200, "told": 600, "vae": 2_000, "unet": 1_800},
        batch={"clip": 128, "told": 64, "vae": 16, "unet": 48},
        learning_rate={"clip": 1e-3, "told": 3e-4, "vae": 1.5e-3, "unet": 1.5e-3},
    ),
    "small": Size(
        image_size=64,
        patch_size=8,
        clip_width=384,
        clip_layers=6,
        clip_text_width=256,
        clip_text_layers=4,
        projection=256,
        vae_channels=(32, 64, 64),
        unet_channels=(96, 192),
        condition_width=192,
        text_layers=4,
        images=100_000,
        clip_images=25_000,
        steps={"clip": 4_000, "told": 2_000, "vae": 4_000, "unet": 10_000},
        batch={"clip": 256, "told": 128, "vae": 64, "unet": 128},
        learning_rate={"clip": 5e-4, "told": 2e-4, "vae": 1e-3, "unet": 6e-4},
    ),
}


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with a vocabulary in which each word of the captions is one token."""
    words = {*PROMPT.format("").split(), *SHAPES, "image", "picture", "scene"}
    for attribute in ATTRIBUTES:
        words |= {word for value in attribute.values for word in phrase(attribute.name, value).lower().split()}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(sorted(words))
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(list[str], merges), model_max_length=MAX_TOKENS)


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair encoding until each word is one token. The tokenizers library's trainer breaks ties at random, and
    token numbers that differ from call to call would be another language for a resumed run."""
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for each in pieces for pair in pairwise(each)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for each in pieces:
            first = 0
            while first < len(each) - 1:
                if (each[first], each[first + 1]) == best:
                    each[first : first + 2] = ["".join(best)]
                first += 1
    return merges


def make_clip(size: Size, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A randomly initialised dual encoder."""
    return CLIPModel(
        CLIPConfig(
            text_config={**_tower(size.clip_text_width, size.clip_text_layers), **_text(tokenizer)},
            vision_config={
                **_tower(size.clip_width, size.clip_layers),
                "image_size": size.image_size,
                "patch_size": size.patch_size,
            },
            projection_dim=size.projection,
        )
    )


def make_image_processor(size: Size) -> "CLIPImageProcessor":
    from transformers import CLIPImageProcessor  # its import prints a line about torchvision

    side = size.image_size
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=MEAN, image_std=STD
    )


def make_vae(size: Size) -> AutoencoderKL:
    """Eight-fold smaller in Stable Diffusion, four-fold here: 32 pixels leave no room for eight."""
    levels = len(size.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        norm_num_groups=8,
        latent_channels=4,
        layers_per_block=1,
        sample_size=size.image_size,
    )


def make_text_encoder(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**_tower(size.condition_width, size.text_layers), **_text(tokenizer)))


def make_unet(size: Size) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size.image_size // 2 ** (len(size.vae_channels) - 1),
        down_block_types=("CrossAttnDownBlock2D",) * len(size.unet_channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(size.unet_channels),
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=tuple(channels // 16 for channels in size.unet_channels),
        cross_attention_dim=size.condition_width,
        use_linear_projection=True,
    )


def make_scheduler(prediction_type: str) -> DDPMScheduler:
    """Stable Diffusion's own schedule."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
    )


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _tower(width: int, layers: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, width // 32),
    }


def _text(tokenizer: CLIPTokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
