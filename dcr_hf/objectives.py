"""Objectives: which predictions of the denoiser feed which loss. One function each; OBJECTIVES names them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.losses import dcr_cosines, multi_positive_info_nce


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


def dcr(
    denoiser: FrozenDenoiser, diffused: Diffused, conditions: Tensor, view_conditions: Tensor, temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The paper's objective: `dcr_loss` on all B * B pairs and the B views. B * B + B UNet evaluations.

    Args:
        conditions: c (B, C) of the images.
        view_conditions: c+ (B, C) of their views.

    Returns:
        the loss and what is logged beside it, scalars on the device.
    """
    n, t = diffused.noisy_latents, diffused.timesteps
    predictions = denoiser.predict_pairs(n, t, conditions)  # (B, B, 4, h, w)
    view_predictions = denoiser.predict(n, t, view_conditions)  # (B, 4, h, w)
    positives, negatives = dcr_cosines(predictions, view_predictions, diffused.target)
    loss = multi_positive_info_nce(positives, negatives, temperature)
    with torch.no_grad():
        metrics = contrast_metrics(positives, negatives)
        metrics |= fidelity_metrics(denoiser, diffused, predictions, view_predictions, conditions)
    return loss, metrics


def contrast_metrics(positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    """How far the positives (B, 2) stand from the negatives (B, B - 1)."""
    hardest = negatives.amax(dim=1)
    return {
        "cosine/view": positives[:, 0].mean(),
        "cosine/target": positives[:, 1].mean(),
        "cosine/negative": negatives.mean(),
        "cosine/hardest_negative": hardest.mean(),
        "nearest_is_positive": (positives.amax(dim=1) > hardest).float().mean(),
    }


def fidelity_metrics(
    denoiser: FrozenDenoiser, diffused: Diffused, predictions: Tensor, view_predictions: Tensor, conditions: Tensor
) -> dict[str, Tensor]:
    """Is the condition one that the denoiser understands? The contrast can be won by leaving those.

    The mean squared error of the noise under the image's own condition, its view's and another image's: a faithful
    condition predicts best under its own. And the mean norm of the conditions, as a multiple of the mean norm of the
    empty prompt's tokens, to which they are added.
    """
    batch = len(conditions)

    def noise_error(predicted: Tensor) -> Tensor:
        return (
            (denoiser.as_noise(predicted, diffused.noisy_latents, diffused.timesteps) - diffused.noise).square().mean()
        )

    rows = torch.arange(batch, device=conditions.device)
    return {
        "noise_mse/own": noise_error(predictions[rows, rows]),
        "noise_mse/view": noise_error(view_predictions),
        "noise_mse/other": noise_error(predictions[rows, rows.roll(1)]),
        "condition_norm": conditions.norm(dim=-1).mean() / denoiser.empty_prompt.float().norm(dim=-1).mean(),
    }


Objective = Callable[
    [FrozenDenoiser, Diffused, Tensor, Tensor, float],
    tuple[Tensor, dict[str, Tensor]],
]

OBJECTIVES: dict[str, Objective] = {"dcr": dcr}
