"""What each supported denoiser costs, counted: nothing is downloaded, and on the meta device nothing is computed.

    python benchmarks/denoisers.py --output_dir out/denoisers

The UNets are built from the published configurations. Operations are those of one of B + 1 conditions of a latent,
through diffusers' own forward pass and by the fast path, as torch counts them.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from dcr_hf.denoiser.fast_path import begin, finish, install
from dcr_hf.denoiser.pipeline import TIME_IDS

POOLED = 1280  # width of SD-XL's pooled prompt
UNETS = {
    "SD 1.4, 1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.1": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "SD-XL": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": POOLED + TIME_IDS * 256,
    },
}
COLUMNS = {
    "parameters": ("UNet", 1e6, "{:,.0f} M"),
    "weights": ("bfloat16", 2**30, "{:.1f} GiB"),
    "bias_matrix": ("bias matrix", 2**20, "{:,.0f} MiB"),
    "plain": ("plain, forward", 1e9, "{:.1f}"),
    "fast": ("fast, forward", 1e9, "{:.1f}"),
    "plain_both": ("plain, both ways", 1e9, "{:.1f}"),
    "fast_both": ("fast, both ways", 1e9, "{:.1f}"),
}


def operations(function, *inputs: Tensor) -> tuple[int, int]:
    """Forward, and forward and backward."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = function(*inputs)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    return forward, counter.get_total_flops()


def count(config: dict, side: int, conditions: int) -> dict[str, float]:
    """Of one UNet at latents of side x side."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **config).eval().requires_grad_(False)  # type: ignore[attr-defined]  # diffusers wraps it
        width = config["cross_attention_dim"]
        matrix = install(unet, torch.zeros(1, 77, width))
        added = {"text_embeds": torch.zeros(1, POOLED), "time_ids": torch.zeros(1, TIME_IDS)}
        latent, timestep = torch.zeros(1, 4, side, side), torch.zeros(1, dtype=torch.long)
        rows = torch.zeros(conditions, dtype=torch.long)
        tokens = torch.zeros(conditions, 77, width, requires_grad=True)
        biases = torch.zeros(conditions, len(matrix), requires_grad=True)
        latents, timesteps = latent.expand(conditions, -1, -1, -1), timestep.expand(conditions)
        plain = operations(lambda c: unet(latents, timesteps, c, added_cond_kwargs=added).sample, tokens)
        fast = operations(
            lambda c: finish(unet, begin(unet, latent, timestep, len(matrix), added).of(rows), c), biases
        )
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return {"parameters": parameters, "weights": 2 * parameters, "bias_matrix": matrix.nbytes} | {
        "plain": plain[0] / conditions,
        "plain_both": plain[1] / conditions,
        "fast": fast[0] / conditions,
        "fast_both": fast[1] / conditions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="B, images")
    options = parser.parse_args()
    rows = {
        name: count(config, options.image_size // 8, options.batch + 1)
        for name, config in tqdm(UNETS.items(), desc="denoisers")
    }
    lines = ["| | " + " | ".join(title for title, _, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = [form.format(row[column] / unit) for column, (_, unit, form) in COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"image_size": options.image_size, "batch": options.batch, "denoisers": rows}
    (folder / "denoisers.json").write_text(json.dumps(facts, indent=2) + "\n")
    (folder / "denoisers.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
