"""The method on a laptop: two stages on a small CLIP and a small Stable Diffusion, without any download.

    accelerate launch recipes/miniature.py

Both models come with the package. Draws scenes, trains, measures both abilities before, after and of a random control,
and writes a report to look at. The objective is plain reconstruction through a denoiser of velocity: of all that was
compared here, it raises both abilities the most surely. docs/miniature.md has the comparison, with the paper's own
objective (`--objective dcr`), and tells what the scenes and the models are.
"""

from dcr_hf.config import Recipe
from dcr_hf.miniature.models import CLIP_FOLDER, DENOISER_FOLDERS, SHIPPED
from dcr_hf.miniature.run import main

RECIPE = Recipe(
    encoder=str(SHIPPED / CLIP_FOLDER),
    denoiser=str(SHIPPED / DENOISER_FOLDERS["v_prediction"]),
    train_data="out/miniature/scenes/train",
    stage1_max_steps=600,
    stage1_learning_rate=1e-3,
    stage2_max_steps=600,
    stage2_learning_rate=3e-4,
)

TRAINING = {
    "objective": "reconstruction",
    "gradient_accumulation_steps": 1,
    "save_steps": 100,
    "logging_steps": 25,
    "dataloader_num_workers": 1,
}

if __name__ == "__main__":
    main(RECIPE, output_dir="out/miniature", **TRAINING)
