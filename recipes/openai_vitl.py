"""DCR on OpenAI's CLIP ViT-L/14 at 224 pixels, as in the paper.

    accelerate launch recipes/openai_vitl.py --output_dir out/openai_vitl

with CC3M from the hub. From local shards, with a smaller memory:

    accelerate launch recipes/openai_vitl.py --output_dir out/openai_vitl \
        --train_data 'cc3m/{00000..00331}.tar' --pair_chunk_size 16
"""

from dcr_hf.config import Recipe
from dcr_hf.run import main

RECIPE = Recipe(encoder="openai/clip-vit-large-patch14")

if __name__ == "__main__":
    main(RECIPE)
