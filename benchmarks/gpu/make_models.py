"""A CLIP, a Stable Diffusion and shards with random content, in the real folders' layout and size.

    python benchmarks/gpu/make_models.py FOLDER [--tiny]

makes FOLDER/clip, FOLDER/sd and FOLDER/shards, for recipes/openai_vitl.py.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from loader import write_shards
from random_models import CLIP_VISION, SIZES, Size, random_unet
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def tokenizer() -> CLIPTokenizer:
    """Byte-level, without merges: every string can be said."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def text_options(words: CLIPTokenizer, width: int, layers: int) -> dict:
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "max_position_embeddings": 77, "vocab_size": len(words)}
    return special | tower | heads


def save_clip(folder: Path, name: str, side: int, words: CLIPTokenizer) -> None:
    hidden, layers, heads, middle, patch, projection = CLIP_VISION[name]
    vision = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision |= {"intermediate_size": middle, "image_size": side, "patch_size": patch}
    text = text_options(words, 64, 2)  # training drops it
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)).save_pretrained(folder)
    crop = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)
    words.save_pretrained(folder)


def save_stable_diffusion(folder: Path, size: Size, words: CLIPTokenizer, dtype: torch.dtype) -> None:
    levels = len(size.vae)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae,
        layers_per_block=size.layers_a_block,
        latent_channels=4,
    )
    with torch.device("cpu"):
        scheduler = PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True
        )
    text_encoder = CLIPTextModel(CLIPTextConfig(**text_options(words, size.condition, size.text_layers)))
    pipeline: Any = StableDiffusionPipeline(
        unet=random_unet(size, dtype),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    begun, words = time.perf_counter(), tokenizer()
    clip, sd, side = ("tiny", "tiny", 64) if options.tiny else ("vitl", "sd21", 224)
    dtype = torch.float32 if options.tiny else torch.bfloat16
    shards = options.folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    # Random numbers for a billion weights: seconds on a GPU, minutes on a CPU.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        save_clip(options.folder / "clip", clip, side, words)
        save_stable_diffusion(options.folder / "sd", SIZES[sd], words, dtype)
    write_shards(shards, shards=4, images=16 if options.tiny else 512, side=128 if options.tiny else 512)
    print(f"{options.folder} after {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
