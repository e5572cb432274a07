"""What a step cannot take less than, on paper: operations, bytes, and the time of both by kind of operation.

    python benchmarks/floor.py --output_dir out/floor

SD 2.1's UNet by the fast path for B * B + B pairs, forward and backward to the conditions' biases, in bfloat16; on the
meta device, where nothing is computed. An operation reads its inputs and writes its outputs once, and takes the longer
of its arithmetic and its traffic. Attention is fused. Encoder and VAE are counted beside it, in operations alone.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKL
from random_models import ENCODERS, SIZES, random_model, random_unet
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dcr_hf import DCRConfig
from dcr_hf.denoiser.fast_path import begin, finish, install

KINDS = {
    "convolution": ("convolution",),
    "matrix product": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("attention",),
    "normalisation": ("norm",),
    "copy": ("clone", "cat", "copy", "index", "slice_backward", "select_backward", "new_zeros", "zeros", "upsample"),
}


class Costs(TorchDispatchMode):
    """Operations and bytes of all that runs inside, by kind.

    Attributes:
        kinds: name -> operations, bytes, and seconds at the given rates.
    """

    def __init__(self, rate: float, bandwidth: float):
        super().__init__()
        self.rate, self.bandwidth = rate, bandwidth
        self.kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("detach", "empty", "empty_like", "empty_strided", "_unsafe_view"):
            packet = func.overloadpacket
            count = flop_registry[packet](*args, **(kwargs or {}), out_val=outputs) if packet in flop_registry else 0
            self.add(kind_of(name), count, tree_leaves((args, kwargs)), tree_leaves(outputs))
        return outputs

    def add(self, kind: str, operations: float, inputs: list[Any], outputs: list[Any]) -> None:
        traffic = sum(_bytes(leaf) for leaf in (*inputs, *outputs) if isinstance(leaf, Tensor))
        seconds = max(operations / self.rate, traffic / self.bandwidth)
        for index, value in enumerate((operations, traffic, seconds)):
            self.kinds[kind][index] += value


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "elementwise")


def _bytes(tensor: Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())  # an expanded tensor is read once


def fused_attention(costs: Costs):
    """In place of torch's, which on the meta device writes its scores: 2 products forward, 5 backward."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            ctx.save_for_backward(query, key, value)
            with torch.utils._python_dispatch._disable_current_modes():
                output = torch.empty_like(query)
            costs.add("attention", 4 * query.numel() * key.shape[-2], [query, key, value], [output])
            return output

        @staticmethod
        def backward(ctx, gradient):
            query, key, value = ctx.saved_tensors
            needed = [
                tensor for tensor, wanted in zip((query, key, value), ctx.needs_input_grad, strict=True) if wanted
            ]
            with torch.utils._python_dispatch._disable_current_modes():
                gradients = [
                    torch.empty_like(tensor) if wanted else None
                    for tensor, wanted in zip((query, key, value), ctx.needs_input_grad, strict=True)
                ]
            read = [query, key, value, gradient, gradient]  # and the output
            costs.add("attention", 10 * query.numel() * key.shape[-2], read, needed)
            return tuple(gradients)

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        return Fused.apply(query, key, value)

    return attention


def unet_costs(costs: Costs, side: int, batch: int, conditions: int) -> None:
    """Every latent under its conditions, forward and backward."""
    size = SIZES["sd21"]
    with torch.device("meta"):
        unet: Any = random_unet(size, torch.bfloat16)
        unet.to(memory_format=torch.channels_last)
        matrix = install(unet, torch.zeros(1, 77, size.condition, dtype=torch.bfloat16))
        noisy = torch.zeros(batch, 4, side, side, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        steps, rows = torch.zeros(batch, dtype=torch.long), torch.zeros(batch * conditions, dtype=torch.long)
        biases = torch.zeros(len(rows), len(matrix), dtype=torch.bfloat16, requires_grad=True)
        with mock.patch.object(F, "scaled_dot_product_attention", fused_attention(costs)), costs:
            predictions = finish(unet, begin(unet, noisy, steps, len(matrix)).of(rows), biases)
            torch.autograd.grad(predictions, biases, torch.zeros_like(predictions))


def other_operations(encoder: str, image_size: int, batch: int) -> dict[str, float]:
    """Operations of the encoder for images and views, both ways, and of the VAE for the images."""
    args = DCRConfig(output_dir="unused", report_to="none", use_cpu=True)
    found = {}
    with torch.device("meta"):
        model = random_model(encoder, image_size, SIZES["sd21"].condition, args).train().bfloat16()
        images = torch.zeros(2 * batch, 3, image_size, image_size, dtype=torch.bfloat16)
        with FlopCounterMode(display=False) as counter:
            model(images).conditions.sum().backward()
        found["encoder, 2 B images, both ways"] = float(counter.get_total_flops())
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=SIZES["sd21"].vae,
            layers_per_block=2,
            latent_channels=4,
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(torch.zeros(batch, 3, image_size, image_size))
        found["VAE, B images, forward"] = float(counter.get_total_flops())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--encoder", choices=ENCODERS, default="vitl")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="B, images")
    parser.add_argument("--rate", type=float, default=700, help="10^12 operations a second that matrix products reach")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="10^12 bytes a second that copies reach")
    options = parser.parse_args()
    costs = Costs(options.rate * 1e12, options.bandwidth * 1e12)
    unet_costs(costs, options.image_size // 8, options.batch, options.batch + 1)
    others = other_operations(options.encoder, options.image_size, options.batch)
    text = table(costs, others)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    facts = {key: str(value) for key, value in vars(options).items()}
    rows = {"options": facts, "kinds": costs.kinds, "others": others}
    (options.output_dir / "floor.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (options.output_dir / "floor.md").write_text(text, encoding="utf-8")
    print(text)


def table(costs: Costs, others: dict[str, float]) -> str:
    lines = ["| | 10^12 operations | GB | ms of arithmetic | ms |", "|---|---|---|---|---|"]
    rows = sorted(costs.kinds.items(), key=lambda item: -item[1][2])
    total = [sum(row[index] for _, row in rows) for index in range(3)]
    for kind, (operations, traffic, seconds) in [*rows, ("UNet", total)]:
        arithmetic = 1e3 * operations / costs.rate
        cells = (f"{operations / 1e12:.2f}", f"{traffic / 1e9:.0f}", f"{arithmetic:.0f}", f"{1e3 * seconds:.0f}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for name, operations in others.items():
        lines.append(f"| {name} | {operations / 1e12:.2f} | | {1e3 * operations / costs.rate:.0f} | |")
    operations = total[0] + sum(others.values())
    lines.append(f"| the step | {operations / 1e12:.1f} | | {1e3 * operations / costs.rate:.0f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
