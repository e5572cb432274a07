"""DCR on MetaCLIP ViT-L/14 at 224 pixels, as in the paper.

    accelerate launch recipes/metaclip_vitl.py --output_dir out/metaclip_vitl

with CC3M from the hub. From local shards, with a smaller memory:

    accelerate launch recipes/metaclip_vitl.py --output_dir out/metaclip_vitl \
        --train_data 'cc3m/{00000..00331}.tar' --pair_chunk_size 16
"""

from dcr_hf.config import Recipe
from dcr_hf.run import main

RECIPE = Recipe(
    encoder="facebook/metaclip-l14-fullcc2.5b",
    denoiser="Manojb/stable-diffusion-2-1-base",
    train_data="pixparse/cc3m-wds",
    # Stage 1 trains the projector; the encoder is frozen.
    stage1_max_steps=100_000,
    stage1_learning_rate=1e-4,
    # Stage 2 trains the encoder, by LoRA on its vision side; the projector is frozen.
    stage2_max_steps=4_600,
    stage2_learning_rate=1e-5,
)
TRAINING = {
    "per_device_train_batch_size": 16,  # each image has the 15 others as negatives; the paper has 8 devices
    "gradient_accumulation_steps": 2,
    "temperature": 0.1,
    "lora_rank": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "lora_bias": "lora_only",
    "weight_decay": 0.01,
    "lr_scheduler_type": "constant",
}

if __name__ == "__main__":
    main(RECIPE, **TRAINING)
