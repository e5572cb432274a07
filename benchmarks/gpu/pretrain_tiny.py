"""The pretraining of pass 4 with a few images and steps, for a rehearsal."""

import dataclasses
import sys
from pathlib import Path

from dcr_hf.miniature.cli import pretrain
from dcr_hf.miniature.models import SIZES

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
    print(pretrain(TINY, Path(sys.argv[1]), seed=0, prediction_types=["epsilon"]))
