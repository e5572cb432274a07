"""DCR on a laptop: two stages on a small CLIP and a small Stable Diffusion, without any download.

    accelerate launch recipes/miniature.py

Both models come with the package. Draws scenes, trains, measures both abilities before and after, and writes a report
to look at. docs/miniature.md tells what the scenes and the models are.
"""

from dcr_hf.config import Recipe
from dcr_hf.miniature.models import CLIP_FOLDER, DENOISER_FOLDERS, SHIPPED
from dcr_hf.miniature.run import main

RECIPE = Recipe(
    encoder=str(SHIPPED / CLIP_FOLDER),
    denoiser=str(SHIPPED / DENOISER_FOLDERS["epsilon"]),
    train_data="out/miniature/scenes/train",
    stage1_max_steps=150,
    stage1_learning_rate=1e-3,
    stage2_max_steps=150,
    stage2_learning_rate=1e-4,
)

TRAINING = {
    "gradient_accumulation_steps": 1,
    # README's numbers were measured with these three.
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "lora_bias": "none",
    "save_steps": 50,
    "dataloader_num_workers": 1,
}

if __name__ == "__main__":
    main(RECIPE, output_dir="out/miniature", **TRAINING)
