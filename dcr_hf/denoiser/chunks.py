"""Many pairs through the UNet in chunks: some keep their activations for the backward pass, others are recomputed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""(latent indices (P,), what each pair's condition brings (P, ...)) -> predictions (P, ...). A pair's prediction
depends on no other pair, and no random numbers are drawn."""


@dataclass
class ChunkPlan:
    """The division of pairs into chunks.

    Attributes:
        size: pairs a chunk.
        kept: how many chunks, the last ones, keep their activations for the backward pass. One is free: its backward
            pass comes first, and recomputing another one needs the same memory.
    """

    size: int
    kept: int = 1

    def limit(self, size: int) -> None:
        """Lower the chunk size after the device ran out of memory."""
        if size < self.size:
            logger.warning(
                f"Out of memory with chunks of {self.size} pairs: continuing with {size}. Start with that by "
                f"--pair_chunk_size {size}."
            )
            self.size = size


def predict_in_chunks(
    evaluate: Evaluate, latents: Tensor, conditions: Tensor, plan: ChunkPlan, pad: bool = False
) -> Tensor:
    """`evaluate` for all pairs, differentiable in the conditions, in the memory that the plan allows.

    Args:
        evaluate: see `Evaluate`.
        latents: (P,), the index of each pair's latent.
        conditions: (P, ...), what each pair's condition brings.
        plan: its size shrinks when the device runs out of memory.
        pad: pad the last chunk, so that `evaluate` always sees the same shape.

    Returns:
        (P, ...)
    """
    pairs = len(latents)
    size = min(plan.size, pairs)
    if pad and pairs % size:
        filled = torch.arange(pairs + size - pairs % size, device=latents.device).clamp(max=pairs - 1)
        latents, conditions = latents[filled], conditions[filled]
    chunks = list(zip(latents.split(size), conditions.split(size), strict=True))
    first_kept = len(chunks) - plan.kept if torch.is_grad_enabled() and conditions.requires_grad else len(chunks)
    outputs = [
        _Chunk.apply(part, rows, evaluate, plan, number >= first_kept) for number, (rows, part) in enumerate(chunks)
    ]
    return torch.cat(outputs)[:pairs]


# What CUDA's libraries say where their own allocations fail, in errors of no type of their own.
_NO_MEMORY = ("out of memory", *(f"{library}_STATUS_ALLOC_FAILED" for library in ("CUDNN", "CUBLAS", "CUSOLVER")))


def lacks_memory(error: RuntimeError) -> bool:
    """Whether the device had no memory left, by torch's allocator or by a library of CUDA's."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


class _Chunk(torch.autograd.Function):
    """One chunk, whose activations are kept or recomputed.

    Unlike torch.utils.checkpoint it continues in halves when memory runs out, in the backward pass too: the pairs of a
    chunk are independent, and no other process is involved.
    """

    @staticmethod
    def forward(ctx, conditions: Tensor, rows: Tensor, evaluate: Evaluate, plan: ChunkPlan, keep: bool) -> Tensor:
        ctx.save_for_backward(rows, conditions)
        ctx.evaluate, ctx.plan, ctx.graphs = evaluate, plan, []
        if keep:
            try:
                ctx.graphs.append(_graph(evaluate, rows, conditions))
                return ctx.graphs[0][1].detach()
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                plan.limit(max(1, len(rows) // 2))
        return _halving(evaluate, plan, rows, conditions)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradients: Tensor):
        def backward(rows: Tensor, conditions: Tensor, gradients: Tensor) -> Tensor:
            # Popped, so that the graph is freed before a second attempt.
            leaf, outputs = ctx.graphs.pop() if ctx.graphs else _graph(ctx.evaluate, rows, conditions)
            return torch.autograd.grad(outputs, leaf, gradients)[0]

        return _halving(backward, ctx.plan, *ctx.saved_tensors, gradients), None, None, None, None


def _graph(evaluate: Evaluate, rows: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
    """The conditions as a leaf, and the predictions with the graph that leads back to it."""
    leaf = conditions.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, evaluate(rows, leaf)


def _halving(function: Callable[..., Tensor], plan: ChunkPlan, *arguments: Tensor) -> Tensor:
    """function(*arguments), by halves of the pairs if the device runs out of memory."""
    pairs = len(arguments[0])
    try:
        return function(*arguments)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        if pairs == 1:
            error.add_note(
                "A single pair of latent and condition does not fit. Lower --per_device_train_batch_size, or give "
                "--gradient_checkpointing for a smaller encoder."
            )
            raise
    # Only here, after the error is gone: its traceback holds all that the attempt allocated.
    torch.cuda.empty_cache()
    half = (pairs + 1) // 2
    plan.limit(half)
    parts = zip(*(argument.split(half) for argument in arguments), strict=True)
    return torch.cat([_halving(function, plan, *part) for part in parts])
