"""The choice of negatives, other images' conditions, and how much each counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from dcr_hf.objectives.losses import cosines


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


def log_weights_by_similarity(originals: Tensor, all_originals: Tensor, others: Tensor) -> Tensor:
    """The logarithm of each negative's weight: the less, the more similar the original encoder finds the two images.

    With s the cosine of the original embeddings, and mean m and deviation d of s over all pairs of the batch, a
    negative's weight is exp(-(s - m) / d), scaled so that an image's weights have the mean 1. What encoders differ in,
    where their cosines lie and how far they spread, drops out.

    Args:
        originals: (B, D), the images'.
        all_originals: (N, D), those of the images that conditions are chosen from.
        others: (B, M), the indices of each image's negatives.

    Returns:
        (B, M), float32 at least, without gradient.
    """
    with torch.no_grad():
        similarities = cosines(originals, all_originals[others])
        deviation = similarities.std(correction=0).clamp(min=1e-6)
        logits = (similarities.mean() - similarities) / deviation
        return logits - logits.logsumexp(dim=1, keepdim=True) + math.log(others.shape[1])


def gather_conditions(conditions: Tensor) -> tuple[Tensor, int]:
    """The conditions (B, ...) of all ranks, (W * B, ...), and the index of this rank's first.

    Gradients return to the rank that a condition belongs to, summed over all that used it. After DDP's mean over ranks
    they are those of one process with the joined batch.
    """
    all_conditions = torch.cat(all_gather(conditions))
    return all_conditions, torch.distributed.get_rank() * len(conditions)
