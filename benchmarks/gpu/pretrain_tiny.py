"""The pretraining of pass 4 with a few images and steps, for a rehearsal."""

import dataclasses
import sys
from pathlib import Path

from diffusers.models import AutoencoderKL

from dcr_hf.miniature.models import SIZES
from dcr_hf.miniature.pretrain import TrainingDraw, pretrain_clip, pretrain_denoiser, pretrain_vae

small = SIZES["small"]
TINY = dataclasses.replace(
    small,
    images=64,
    clip_images=32,
    clip_width=64,
    clip_layers=2,
    clip_text_width=64,
    clip_text_layers=2,
    unet_channels=(32, 64),
    vae_channels=(16, 32, 32),
    condition_width=64,
    text_layers=2,
    steps=dict.fromkeys(small.steps, 2),
    batch=dict.fromkeys(small.batch, 8),
)

if __name__ == "__main__":
    output = Path(sys.argv[1])
    draw, work = TrainingDraw.of(TINY, seed=0), output / "work"
    pretrain_clip(draw, TINY, output, work, 0)
    vae = AutoencoderKL.from_pretrained(pretrain_vae(draw, TINY, work, 0))
    print(pretrain_denoiser(draw, vae, TINY, output, work, 0, "epsilon"))
