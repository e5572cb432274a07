"""The choice of negatives: other images' conditions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather


@dataclass(frozen=True)
class Negatives:
    """Options of the negatives. The defaults are the paper's.

    Attributes:
        count: how many are drawn at every step for every image; None for all.
        detach: their predictions get no gradient: no backward pass, and no push on other images' conditions.
        gather: take the conditions of all ranks, not only those of the image's own batch.
    """

    count: int | None = None
    detach: bool = False
    gather: bool = False


ALL_NEGATIVES = Negatives()


def choose_negatives(own: Tensor, total: int, count: int | None) -> Tensor:
    """Indices of `count` different conditions for each image, or of all but its own.

    Args:
        own: (B, 1), the index of each image's own condition, from 0 to total - 1.
        total: the number of conditions.

    Returns:
        (B, count or total - 1)
    """
    if count is None:
        steps = torch.arange(total - 1, device=own.device)
    else:
        # The largest of random numbers: a draw without replacement, without a wait of the host.
        steps = torch.rand(len(own), total - 1, device=own.device).topk(count).indices
    return (own + 1 + steps) % total


def gather_conditions(conditions: Tensor) -> tuple[Tensor, int]:
    """The conditions (B, ...) of all ranks, (W * B, ...), and the index of this rank's first.

    Gradients return to the rank that a condition belongs to, summed over all that used it. After DDP's mean over ranks
    they are those of one process with the joined batch.
    """
    all_conditions = torch.cat(all_gather(conditions))
    return all_conditions, torch.distributed.get_rank() * len(conditions)
