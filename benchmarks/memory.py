"""What fits which GPU, computed without one: bytes counted on the CPU, then the planner's own choice.

    python benchmarks/memory.py --output_dir out/memory

Two pairs go through SD 2.1's layout in bfloat16, and one and two images through each encoder with LoRA, forward and
backward, while the bytes of all living tensors are counted; both grow linearly with their numbers. Not counted are
what CUDA itself takes (`CONTEXT`) and the allocator's fragmentation, for which the planner's margin stands.
"""

import argparse
import json
from pathlib import Path

import torch
from random_models import SIZES, random_denoiser, random_model, random_text_encoder, random_unet
from released import empty_prompt
from torch import nn
from tqdm.auto import tqdm

from dcr_hf import DCRConfig
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.denoiser.planner import MARGIN, SMALL, LiveBytes, PairMemory, choose_plan, measure

GIB = 2**30
CONTEXT = int(0.7 * GIB)
GPUS = (16, 24, 40, 80)
MODELS = {"ViT-L/14, 224": ("vitl", 224), "ViT-L/14, 336": ("vitl", 336), "ViT-H/14, 224": ("vith", 224)} | {
    "SigLIP SO400M, 384": ("siglip", 384),
}


def weights(module: nn.Module) -> int:
    """Bytes of a module, with AdamW's two moments and the gradient of what is trained."""
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers())) + 3 * trained


def pair_memory(denoiser: FrozenDenoiser, image_size: int) -> PairMemory:
    side = image_size // 8
    noisy, timesteps = torch.zeros(1, 4, side, side, dtype=denoiser.dtype), torch.zeros(1, dtype=torch.long)
    evaluate, biases = denoiser._fast_path(noisy, timesteps, torch.zeros(2, denoiser.condition_width))
    return measure(evaluate, torch.zeros(2, dtype=torch.long), biases)


def encoder_bytes(name: str, image_size: int, width: int, checkpointing: bool) -> tuple[int, int]:
    """What encoder and projector take in stage 2 under bfloat16 autocast: in any case, and for each image more."""
    model = random_model(name, image_size, width, DCRConfig(output_dir="unused", report_to="none", use_cpu=True))
    if checkpointing:
        model.gradient_checkpointing_enable()
    peaks = []
    for count in (1, 2):
        images = torch.zeros(count, 3, image_size, image_size)
        with LiveBytes() as live:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = model.train()(images)
            outputs.conditions.sum().backward()
        peaks.append(live.peak)
        model.zero_grad()
    an_image = peaks[1] - peaks[0]
    return weights(model) + peaks[0] - an_image, an_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--batch", type=int, default=16, help="B, images")
    options = parser.parse_args()
    size, B = SIZES["sd21"], options.batch
    text_encoder = random_text_encoder(size, torch.bfloat16)
    denoiser = random_denoiser(size, random_unet(size, torch.bfloat16), empty_prompt(text_encoder))
    frozen = weights(denoiser)
    pairs = {side: pair_memory(denoiser, side) for side in tqdm((224, 336, 384), desc="UNet")}
    del denoiser
    rows = []
    ways = [(name, checkpointing) for name in MODELS for checkpointing in (False, True)]
    for name, checkpointing in tqdm(ways, desc="encoders"):
        encoder, image_size = MODELS[name]
        own, image = encoder_bytes(encoder, image_size, size.condition, checkpointing)
        memory, fixed = pairs[image_size], frozen + own + 2 * B * image + CONTEXT
        title = name + ", --gradient_checkpointing" * checkpointing
        row = {"model": title, "pair_saved": memory.saved, "pair_working": memory.working, "fixed": fixed, "gpus": {}}
        count = B * B + B
        for gpu in GPUS:
            plan = choose_plan(count, memory, max(0, int((1 - MARGIN) * gpu * GIB) - fixed), SMALL["cuda"])
            chunks = -(-count // plan.size)
            recomputed = (chunks - plan.kept) * plan.size / count
            peak = fixed + plan.size * (plan.kept * memory.saved + memory.working)
            row["gpus"][gpu] = {"size": plan.size, "kept": plan.kept, "recomputed": recomputed, "peak": peak}
        rows.append(row)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.json").write_text(json.dumps({"batch": B, "rows": rows}, indent=2) + "\n")
    text = markdown(rows)
    (folder / "memory.md").write_text(text)
    print(text)


def markdown(rows: list[dict]) -> str:
    lines = [
        "| | " + " | ".join(f"{gpu} GB" for gpu in GPUS) + " | a pair | all else |",
        "|---|" + "---|" * (len(GPUS) + 2),
    ]
    for row in rows:
        cells = []
        for gpu, plan in row["gpus"].items():
            fits = plan["peak"] <= (1 - MARGIN) * gpu * GIB
            cells.append(
                f"{plan['peak'] / GIB:.0f} GiB; chunks of {plan['size']}, {plan['recomputed']:.0%} recomputed"
                if fits
                else "does not fit"
            )
        pair = f"{(row['pair_saved'] + row['pair_working']) / 2**20:.0f} MiB"
        lines.append(f"| {row['model']} | {' | '.join(cells)} | {pair} | {row['fixed'] / GIB:.1f} GiB |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
