"""The fast path on the device against the plain one in float64, in every precision; chunks, planner, little memory.

At SD 2.1's own layout, random weights. Distances are relative, of predictions and of the conditions' gradients.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from random_models import SIZES, random_denoiser, random_unet
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from ways import KERNELS

from dcr_hf import FrozenDenoiser
from dcr_hf.config.base import switch_tf32
from dcr_hf.denoiser.planner import choose_plan, measure, memory_budget
from dcr_hf.denoiser.shared_keys import choose_keys

MIB, GIB = 2**20, 2**30
Found = tuple[Tensor, Tensor]


class Parity:
    """One random UNet, in several precisions, and what was found, in `output_dir`/parity.json."""

    def __init__(self, output_dir: Path, tiny: bool):
        self.file = output_dir / "parity.json"
        self.found: dict[str, Any] = {}
        self.cuda, self.tiny = torch.cuda.is_available(), tiny
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.size, self.side = (SIZES["tiny"], 8) if tiny else (SIZES["sd21"], 28)
        torch.manual_seed(0)
        with torch.device(self.device):
            self.unet = random_unet(self.size, torch.float32)
            self.prompt = torch.randn(1, 77, self.size.condition)

    def keep(self, name: str, value: Any) -> None:
        self.found[name] = value
        self.file.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        print(name, value, flush=True)

    def denoiser(self, dtype: torch.dtype) -> FrozenDenoiser:
        unet = copy.deepcopy(self.unet).to(dtype)  # type: ignore[attr-defined]  # diffusers wraps it
        return random_denoiser(self.size, unet, self.prompt).to(self.device)

    def answer(self, denoiser: FrozenDenoiser, batch: int = 3, conditions: int = 4, plain: bool = False) -> Found:
        """Predictions and the gradient of the conditions, in float64, for inputs that are the same at every call."""
        random = torch.Generator().manual_seed(0)
        noisy = torch.randn(batch, 4, self.side, self.side, generator=random).bfloat16().float().to(self.device)
        steps = torch.randint(1000, (batch,), generator=random).to(self.device)
        c = torch.randn(conditions, self.size.condition, generator=random).to(self.device).requires_grad_()
        weights = torch.randn(batch, conditions, 4, self.side, self.side, generator=random).to(self.device)
        given = c[:, None].expand(-1, 77, -1) if plain else c  # one vector a token takes the plain path
        predictions = denoiser.predict_pairs(noisy, steps, given)
        gradient = torch.autograd.grad((predictions * weights).sum(), c)[0]
        return predictions.detach().double().cpu(), gradient.double().cpu()

    def precisions(self) -> FrozenDenoiser:
        """Float32, TF32 and bfloat16 against float64. Returns the denoiser in bfloat16."""
        switch_tf32(False)
        exact = self.answer(self.denoiser(torch.float64), plain=True)
        self.keep("float64, fast", distances(self.answer(self.denoiser(torch.float64)), exact))
        single = self.denoiser(torch.float32)
        for tf32 in (False, True):
            switch_tf32(tf32)
            name = "TF32" if tf32 else "float32"
            self.keep(f"{name}, plain", distances(self.answer(single, plain=True), exact))
            self.keep(f"{name}, fast", distances(self.answer(single), exact))
            single.pair_chunk_size = 5
            self.keep(f"{name}, fast, chunks of 5", distances(self.answer(single), exact))
            single.pair_chunk_size = 0
        half = self.denoiser(torch.bfloat16)
        self.keep("bfloat16, plain", distances(self.answer(half, plain=True), exact))
        self.keep("bfloat16, fast", distances(self.answer(half), exact))
        again = [self.answer(half) for _ in range(3)]
        same = [all(torch.equal(again[0][part], other[part]) for other in again) for part in (0, 1)]
        self.keep("bfloat16, fast, the same to the last bit at every call", same)
        self.kernels(half, exact)
        return half

    def kernels(self, half: FrozenDenoiser, exact: Found) -> None:
        """Each attention kernel alone, with shared or copied keys as the fast path itself chooses for it."""
        for name, kernel in KERNELS.items() if self.cuda else ():
            try:
                with sdpa_kernel(kernel):
                    choose_keys(half.unet)
                    copies = half.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor.copies
                    found = distances(self.answer(half), exact)
                self.keep(f"bfloat16, fast, {name} attention", {"distances": found, "copied keys": copies})
            except RuntimeError as error:
                self.keep(f"bfloat16, fast, {name} attention", str(error).splitlines()[0][:200])
        choose_keys(half.unet)

    def planner(self, half: FrozenDenoiser) -> None:
        """What a pair takes by the planner's probes, and what it chooses for 16 images."""
        batch = 4 if self.tiny else 16
        noisy = torch.randn(batch, 4, self.side, self.side, device=self.device, dtype=half.dtype)
        steps, pairs = torch.randint(1000, (batch,), device=self.device), batch * batch + batch
        conditions = torch.randn(2 * batch, self.size.condition, device=self.device)
        evaluate, brought = half._fast_path(noisy, steps, conditions)
        numbers = torch.arange(pairs, device=self.device)
        memory = measure(evaluate, numbers % batch, brought[numbers % (2 * batch)])
        budget = memory_budget(self.device)
        plan = choose_plan(pairs, memory, budget)
        self.keep(
            "planner",
            {
                "saved, MiB a pair": memory.saved / MIB,
                "working, MiB a pair": memory.working / MIB,
                "budget, GiB": budget / GIB,
                "pairs": pairs,
                "chosen": (plan.size, plan.kept),
            },
        )

    def little_memory(self, half: FrozenDenoiser) -> None:
        """This process may take only a few GiB more: chunks shrink, and values and gradients stay."""
        if not self.cuda:
            return
        half.pair_chunk_size = 8
        expected = self.answer(half, 16, 17)
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 6 * GIB) / total)
        for size in (0, "auto"):
            half.pair_chunk_size = size
            half.reset_chunk_plans()
            found = distances(self.answer(half, 16, 17), expected)
            chunks = [(plan.size, plan.kept) for plan in half._plans.values()]
            self.keep(f"6 GiB, chunks {size or 'all'}", {"distances": found, "chunks": chunks})
        torch.cuda.set_per_process_memory_fraction(1.0)


def distances(found: Found, expected: Found) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    parity = Parity(options.output_dir, options.tiny)
    half = parity.precisions()
    parity.planner(half)
    parity.little_memory(half)


if __name__ == "__main__":
    main()
