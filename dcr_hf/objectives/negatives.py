"""Which other images' conditions an image is contrasted with."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather


@dataclass(frozen=True)
class Negatives:
    """Which conditions are an image's negatives, and at what cost. The defaults are the paper's.

    Attributes:
        count: sampled anew at every step for every image; None for all.
        detach: their predictions get no gradient: no backward pass, and nothing pushes the conditions of other images.
        gather: the conditions of all processes count, not only those of the image's own batch.
    """

    count: int | None = None
    detach: bool = False
    gather: bool = False


ALL_NEGATIVES = Negatives()


def choose_negatives(own: Tensor, total: int, count: int | None) -> Tensor:
    """Numbers of `count` different conditions for each image, or of all, its own never among them.

    Args:
        own: (B, 1), the number of each image's own condition, from 0 to total - 1.
        total: how many conditions there are.

    Returns:
        (B, count or total - 1)
    """
    if count is None:
        steps = torch.arange(total - 1, device=own.device)
    else:
        # The largest of random numbers: a draw without replacement that the host need not wait for.
        steps = torch.rand(len(own), total - 1, device=own.device).topk(count).indices
    return (own + 1 + steps) % total


def gather_conditions(conditions: Tensor) -> tuple[Tensor, int]:
    """The conditions (B, ...) of all processes, (W * B, ...), and the number of the first of this process's own.

    Gradients go back to the process that a condition belongs to, summed over all that used it. With the mean over
    processes that DDP takes afterwards, they are those of one process with the joined batch.
    """
    everyones = torch.cat(all_gather(conditions))
    return everyones, torch.distributed.get_rank() * len(conditions)
