"""LLaVA-1.5's two stages, on an enhanced encoder and a language model.

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml recipes/llava15.py \
        --encoder out/openai_vitl_336/clip-vit-large-patch14-336-dcr --language_model lmsys/vicuna-7b-v1.5 \
        --output_dir out/llava15 \
        --align_data data/blip_laion_cc_sbu_558k.json --align_images data/LLaVA-Pretrain \
        --instruct_data data/llava_v1_5_mix665k.json --instruct_images data

or on a LLaVA of transformers, with --llava in the place of --encoder and --language_model. On small GPUs:

    accelerate launch recipes/llava15.py ... --lora_rank 128 \
        --align_batch_size 8 --instruct_batch_size 4 --gradient_accumulation_steps 4

docs/llava.md tells the rest.
"""

from dcr_hf.llava.config import LlavaRecipe
from dcr_hf.llava.run import main

RECIPE = LlavaRecipe()

if __name__ == "__main__":
    main(RECIPE)
