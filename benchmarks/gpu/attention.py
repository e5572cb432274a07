"""Attention at SD 2.1's sizes: which kernel the device chooses, whether it is right, and how long it takes.

For self-attention, and for attention to the empty prompt's keys: shared by all pairs, as the fast path hands them
over, or copied for each. Errors are relative, of values and of gradients, against plain attention in float32.
"""

import argparse
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from clock import milliseconds
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dcr_hf.models.float32 import full_float32

KERNELS = {
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SIZES = ((784, 5), (196, 10), (49, 20), (16, 20))  # tokens and heads of each level at 224 px
KINDS = ("self", "prompt, shared", "prompt, copied")
PROMPT, WIDTH = 77, 64


def inputs(kind: str, pairs: int, tokens: int, heads: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the weights of the sum whose gradient is taken, (pairs, heads, tokens, WIDTH) each."""
    generator = torch.Generator(device).manual_seed(0)

    def random(count: int, length: int) -> Tensor:
        made = torch.randn(count, length, heads, WIDTH, generator=generator, device=device)
        return made.to(dtype).transpose(1, 2)

    query, weights = random(pairs, tokens), random(pairs, tokens)
    if kind == "self":
        return [query, random(pairs, tokens), random(pairs, tokens), weights]
    keys = [random(1, PROMPT).expand(pairs, -1, -1, -1) for _ in range(2)]
    return [query, *(key.contiguous() if kind == "prompt, copied" else key for key in keys), weights]


def both_ways(given: list[Tensor], kernel: SDPBackend | None) -> tuple[Tensor, Tensor]:
    """The values, and the gradient of the query."""
    query, key, value, weights = given
    leaf = query.detach().requires_grad_()
    with sdpa_kernel(kernel) if kernel is not None else nullcontext():
        values = F.scaled_dot_product_attention(leaf, key, value)
    return values.detach(), torch.autograd.grad(values, leaf, weights)[0]


def measure(given: list[Tensor], device: str) -> dict[str, dict]:
    """For each kernel errors and milliseconds, or why it does not run."""
    with full_float32():
        expected = both_ways([tensor.float() for tensor in given], SDPBackend.MATH)
    rows: dict[str, dict] = {}
    for name, kernel in KERNELS.items():
        try:
            found = both_ways(given, kernel)
            errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
            time = milliseconds(partial(both_ways, given, kernel), device)
            rows[name] = {"errors": errors, "ms": time}
        except RuntimeError as error:
            rows[name] = {"failed": str(error).splitlines()[0][:200]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs, dtype = (2, torch.float32) if options.tiny else (64, torch.bfloat16)
    rows: list[dict] = []
    for tokens, heads in SIZES:
        for kind in KINDS:
            given = inputs(kind, pairs, tokens, heads, device, dtype)
            query, key, value, _ = given
            chosen = SDPBackend(torch._fused_sdp_choice(query.requires_grad_(), key, value)).name
            row = {"tokens": tokens, "heads": heads, "kind": kind, "chosen": chosen, "kernels": measure(given, device)}
            rows.append(row)
            (options.output_dir / "attention.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = table(rows)
    (options.output_dir / "attention.md").write_text(text, encoding="utf-8")
    print(text)


def table(rows: list[dict]) -> str:
    lines = ["| tokens | attention | chosen | " + " | ".join(KERNELS) + " |", "|---" * (3 + len(KERNELS)) + "|"]
    for row in rows:
        cells = []
        for name in KERNELS:
            found = row["kernels"][name]
            right = "failed" in found or f"{found['ms']:.2f} ms, {max(found['errors']):.0e}"
            cells.append("does not run" if right is True else right)
        lines.append(f"| {row['tokens']} | {row['kind']} | {row['chosen']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
