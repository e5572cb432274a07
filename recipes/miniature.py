"""DCR on a laptop: two stages on a small CLIP and a small Stable Diffusion that ship with the package.

    accelerate launch recipes/miniature.py

Draws the scenes, trains, measures both abilities before and after, and writes a report to look at. No download.
docs/miniature.md tells what the models are, and what holds at this size and what does not.
"""

from dcr_hf.config import Recipe
from dcr_hf.miniature.run import WEIGHTS, main

RECIPE = Recipe(
    encoder=str(WEIGHTS / "clip-miniature"),
    denoiser=str(WEIGHTS / "sd-miniature"),
    train_data="out/miniature/scenes/train",
    stage1_max_steps=150,
    stage1_learning_rate=1e-3,
    stage2_max_steps=150,
    stage2_learning_rate=1e-4,
)

if __name__ == "__main__":
    main(RECIPE, output_dir="out/miniature", gradient_accumulation_steps=1, save_steps=50, dataloader_num_workers=1)
