"""Objectives: which predictions of the denoiser feed which loss. One function each; OBJECTIVES names them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.losses import cosines, multi_positive_info_nce


@dataclass(frozen=True)
class Diffused:
    """One batch on its way through the denoiser; each tensor (B, 4, h, w) but timesteps (B,)."""

    noisy_latents: Tensor
    timesteps: Tensor
    noise: Tensor
    target: Tensor

    @classmethod
    def draw(cls, denoiser: FrozenDenoiser, images: Tensor) -> "Diffused":
        """Latents l, timesteps t, noise e and target y for images (B, 3, H, W) in [0, 1]."""
        latents = denoiser.encode(images)
        timesteps = denoiser.draw_timesteps(len(images))
        noise = torch.randn_like(latents)
        return cls(
            noisy_latents=denoiser.add_noise(latents, noise, timesteps),
            timesteps=timesteps,
            noise=noise,
            target=denoiser.target(latents, noise, timesteps),
        )


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


def dcr(
    denoiser: FrozenDenoiser,
    diffused: Diffused,
    conditions: Tensor,
    view_conditions: Tensor,
    temperature: float,
    which: Negatives = ALL_NEGATIVES,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The paper's objective, `dcr_loss`, on the pairs it needs. By default B * B + B UNet evaluations.

    Args:
        conditions: c (B, C) of the images.
        view_conditions: c+ (B, C) of their views.
        which: of the other images' conditions.

    Returns:
        the loss and what is logged beside it, scalars on the device.
    """
    if which.gather:
        everyones, first = gather_conditions(conditions)  # (W * B, C)
    else:
        everyones, first = conditions, 0
    own = first + torch.arange(len(conditions), device=conditions.device)[:, None]  # (B, 1)
    others = choose_negatives(own, len(everyones), which.count)  # (B, M)
    view = own - first + len(everyones)  # (B, 1)
    table = torch.cat([everyones, view_conditions])
    n, t = diffused.noisy_latents, diffused.timesteps
    if which.detach:
        anchors, views = denoiser.predict_chosen(n, t, table, torch.cat([own, view], dim=1)).unbind(dim=1)
        with torch.no_grad():
            negatives = denoiser.predict_chosen(n, t, table, others)  # (B, M, 4, h, w)
    else:
        # The view is one more condition of the same latent.
        predictions = denoiser.predict_chosen(n, t, table, torch.cat([own, view, others], dim=1))
        anchors, views, negatives = predictions[:, 0], predictions[:, 1], predictions[:, 2:]
    to_positives = cosines(anchors, torch.stack([views, diffused.target], dim=1))  # (B, 2)
    to_negatives = cosines(anchors, negatives)  # (B, M)
    loss = multi_positive_info_nce(to_positives, to_negatives, temperature)
    with torch.no_grad():
        metrics = contrast_metrics(to_positives, to_negatives)
        metrics |= fidelity_metrics(denoiser, diffused, anchors, views, negatives[:, 0], conditions)
    return loss, metrics


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
    """The conditions of all processes (W * B, C), and the number of the first of this process's own.

    Gradients go back to the process that a condition belongs to, summed over all that used it. With the mean over
    processes that DDP takes afterwards, they are those of one process with the joined batch.
    """
    everyones = torch.cat(all_gather(conditions))
    return everyones, torch.distributed.get_rank() * len(conditions)


def contrast_metrics(positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    """How far the positives (B, 2) stand from the negatives (B, M)."""
    hardest = negatives.amax(dim=1)
    return {
        "cosine/view": positives[:, 0].mean(),
        "cosine/target": positives[:, 1].mean(),
        "cosine/negative": negatives.mean(),
        "cosine/hardest_negative": hardest.mean(),
        "nearest_is_positive": (positives.amax(dim=1) > hardest).float().mean(),
    }


def fidelity_metrics(
    denoiser: FrozenDenoiser,
    diffused: Diffused,
    own_predictions: Tensor,
    view_predictions: Tensor,
    other_predictions: Tensor,
    conditions: Tensor,
) -> dict[str, Tensor]:
    """Is the condition one that the denoiser understands? The contrast can be won by leaving those.

    The mean squared error of the noise under the image's own condition, its view's and another image's: a faithful
    condition predicts best under its own. And the mean norm of the conditions, as a multiple of the mean norm of the
    empty prompt's tokens, to which they are added. Predictions are (B, 4, h, w), conditions (B, C).
    """

    def noise_error(predicted: Tensor) -> Tensor:
        return (
            (denoiser.as_noise(predicted, diffused.noisy_latents, diffused.timesteps) - diffused.noise).square().mean()
        )

    return {
        "noise_mse/own": noise_error(own_predictions),
        "noise_mse/view": noise_error(view_predictions),
        "noise_mse/other": noise_error(other_predictions),
        "condition_norm": conditions.norm(dim=-1).mean() / denoiser.empty_prompt.float().norm(dim=-1).mean(),
    }


Objective = Callable[
    [FrozenDenoiser, Diffused, Tensor, Tensor, float, Negatives],
    tuple[Tensor, dict[str, Tensor]],
]

OBJECTIVES: dict[str, Objective] = {"dcr": dcr}
