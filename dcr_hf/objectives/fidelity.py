"""What is logged beside a loss: how far the contrast has come, and whether the denoiser still knows the conditions."""

from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Diffused


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
