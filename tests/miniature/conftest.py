"""The miniature's own models, a few steps old."""

import dataclasses

import pytest
from diffusers import AutoencoderKL

from dcr_hf.miniature import pretrain
from dcr_hf.miniature.models import SIZES

STEPS = 6


@pytest.fixture(scope="session")
def tiny_size():
    return dataclasses.replace(
        SIZES["mini"],
        images=96,
        steps=dict.fromkeys(("clip", "vae", "unet"), STEPS),
        batch=dict.fromkeys(("clip", "vae", "unet"), 8),
    )


@pytest.fixture(scope="session")
def draw(tiny_size):
    return pretrain.TrainingDraw.of(tiny_size, seed=0)


@pytest.fixture(scope="session")
def pretrained(draw, tiny_size, tmp_path_factory):
    """A folder with all that pretraining leaves."""
    output = tmp_path_factory.mktemp("pretrained")
    pretrain.pretrain_clip(draw, tiny_size, output, output / "work", seed=0)
    vae = pretrain.pretrain_vae(draw, tiny_size, output / "work", seed=0)
    for kind in pretrain.PREDICTION_TYPES:
        own = AutoencoderKL.from_pretrained(vae)
        pretrain.pretrain_denoiser(draw, own, tiny_size, output, output / "work", 0, kind)
    return output
