"""DCR on SigLIP SO400M/14 at 384 pixels, as in the paper.

    accelerate launch recipes/siglip_so_384.py --output_dir out/siglip_so_384

with CC3M from the hub. From local shards, with a smaller memory:

    accelerate launch recipes/siglip_so_384.py --output_dir out/siglip_so_384 \
        --train_data 'cc3m/{00000..00331}.tar' --pair_chunk_size 16
"""

from dcr_hf.config import Recipe
from dcr_hf.run import main

RECIPE = Recipe(encoder="google/siglip-so400m-patch14-384")

if __name__ == "__main__":
    main(RECIPE)
