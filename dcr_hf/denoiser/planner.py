"""The chunk plan: the memory that a pair takes, the free memory, and the chunks that fit."""

import logging
import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcr_hf.denoiser.chunks import ChunkPlan, Evaluate

logger = logging.getLogger(__name__)

PROBES = (4, 8)  # pairs; what both take whatever their number, such as the libraries' workspaces, is no pair's
# Smaller chunks leave a device idle between kernels; they are taken only where this many do not fit.
SMALL = {"cpu": 32, "cuda": 64}
# A share of the device, left for fragmentation, other processes and the optimizer's state, allocated after step 1.
MARGIN = 0.1
# On a CPU nothing is measured, so that a resumed run takes the same chunks and stays exact.
CPU_BUDGET = 4 * 2**30


@dataclass(frozen=True)
class PairMemory:
    """Bytes that a pair takes: activations saved for the backward pass, and temporary ones on top of them."""

    saved: int
    working: int


def choose_plan(pairs: int, memory: PairMemory, budget: int, small: int = SMALL["cpu"]) -> ChunkPlan:
    """The plan that recomputes the fewest pairs within `budget` bytes; among equals, the one with the largest chunks.

    Chunks of fewer than `small` pairs are taken only where twice as many do not fit. If not even one pair fits, the
    plan tries one.
    """
    fits = budget // (memory.saved + memory.working)
    if fits == 0:
        return ChunkPlan(1)
    sizes = {math.ceil(pairs / chunks) for chunks in range(1, pairs + 1)}  # chunks as even as can be
    plans = []
    for size in (size for size in sizes if min(small, math.ceil(fits / 2), pairs) <= size <= fits):
        chunks = math.ceil(pairs / size)
        kept = min(chunks, (budget - size * memory.working) // (size * memory.saved))
        recomputed = (chunks - kept) * size
        plans.append((recomputed, -size, ChunkPlan(size, kept)))
    return min(plans)[-1]


def measure(evaluate: Evaluate, latents: Tensor, conditions: Tensor) -> PairMemory:
    """The memory that a pair takes, by a forward and backward pass of a few pairs.

    On a GPU the allocator measures two numbers of pairs; their difference counts. Elsewhere the bytes of all live
    tensors are counted, which gives the same on every machine (and allocates nothing on the meta device).
    """
    measured, probes = (_measure_cuda, PROBES) if conditions.is_cuda else (_measure_by_counting, PROBES[:1])
    counts = [min(pairs, len(latents)) for pairs in probes]
    with torch.enable_grad():
        found = [measured(evaluate, latents[:pairs], conditions[:pairs].detach().requires_grad_()) for pairs in counts]
    return slope(found[0], found[-1], counts[0], counts[-1])


def slope(few: tuple[int, int], more: tuple[int, int], pairs_few: int, pairs_more: int) -> PairMemory:
    """The bytes of a pair, from (saved, peak) of two numbers of pairs; of one, where there are no more pairs."""
    saved, working = (
        (second - first) / (pairs_more - pairs_few) if pairs_more > pairs_few else second / pairs_more
        for first, second in ((few[0], more[0]), (few[1] - few[0], more[1] - more[0]))
    )
    return PairMemory(max(1, math.ceil(saved)), max(0, math.ceil(working)))


def _measure_cuda(evaluate: Evaluate, rows: Tensor, leaf: Tensor) -> tuple[int, int]:
    for _ in range(2):  # the first pass also allocates the libraries' persistent workspaces
        torch.cuda.synchronize(leaf.device)
        torch.cuda.reset_peak_memory_stats(leaf.device)
        before = torch.cuda.memory_allocated(leaf.device)
        outputs = evaluate(rows, leaf)
        saved = torch.cuda.memory_allocated(leaf.device) - before
        torch.autograd.grad(outputs.sum(), leaf)
        peak = torch.cuda.max_memory_allocated(leaf.device) - before
        del outputs
    torch.cuda.empty_cache()
    return saved, peak


def _measure_by_counting(evaluate: Evaluate, rows: Tensor, leaf: Tensor) -> tuple[int, int]:
    with LiveBytes() as live:
        outputs = evaluate(rows, leaf)
        saved = live.now
        torch.autograd.grad(outputs.sum(), leaf)
    return saved, live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that operations inside it made.

    Attributes:
        now, peak: bytes made since entering.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {_identity(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and _identity(leaf) not in inputs:  # views share their input's storage
                self._count(leaf.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        identity, size = storage._cdata, storage.nbytes()
        if identity in self._known:
            return
        self._known.add(identity)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, identity, size).atexit = False

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def memory_budget(device: torch.device) -> int:
    """Bytes that pairs may take: a GPU's free memory less a margin; a fixed amount on any other device."""
    if device.type != "cuda":
        return CPU_BUDGET
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int(free + unused - MARGIN * total))


def make_plan(evaluate: Evaluate, latents: Tensor, conditions: Tensor) -> ChunkPlan:
    """The plan for these pairs, by `measure` and `choose_plan`; logs both."""
    memory = measure(evaluate, latents, conditions)
    budget = memory_budget(conditions.device)
    plan = choose_plan(len(latents), memory, budget, SMALL["cuda" if conditions.is_cuda else "cpu"])
    logger.info(
        f"--pair_chunk_size auto: {len(latents)} pairs in chunks of {plan.size}, the last {plan.kept} without "
        f"recomputation. A pair saves {memory.saved / 2**20:.1f} MiB and takes {memory.working / 2**20:.1f} MiB more "
        f"while it is computed; {budget / 2**30:.1f} GiB are available."
    )
    return plan
