"""Metrics logged with a loss: the contrast's progress, and whether the denoiser still understands the conditions."""

from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Diffused


def contrast_metrics(positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    """Metrics of the separation of the positives (B, 2) from the negatives (B, M)."""
    hardest = negatives.amax(dim=1)
    return {
        "cosine/view": positives[:, 0].mean(),
        "cosine/target": positives[:, 1].mean(),
        "cosine/negative": negatives.mean(),
        "cosine/hardest_negative": hardest.mean(),
        "nearest_is_positive": (positives.amax(dim=1) > hardest).float().mean(),
    }


def noise_errors(denoiser: FrozenDenoiser, diffused: Diffused, **predictions: Tensor) -> dict[str, Tensor]:
    """The mean squared error of the noise, by the name of each prediction's (B, 4, h, w) condition.

    It shows whether the denoiser still understands the conditions: the contrast may improve by leaving those that it
    does. Names are the image's own condition, its view's, another image's, the empty prompt. With faithful conditions
    the own one has the lowest error.
    """
    n, t, noise = diffused.noisy_latents, diffused.timesteps, diffused.noise
    return {
        f"noise_mse/{name}": (denoiser.as_noise(predicted, n, t) - noise).square().mean()
        for name, predicted in predictions.items()
    }


def condition_norm(denoiser: FrozenDenoiser, conditions: Tensor) -> dict[str, Tensor]:
    """The mean norm of the conditions (B, C), as a multiple of that of the empty prompt's tokens; for conditions
    (B, 77 + M, C) also that of their own M tokens."""
    norms = conditions.norm(dim=-1) / denoiser.token_norm
    if conditions.ndim == 2:
        return {"condition_norm": norms.mean()}
    shared, own = norms.tensor_split([denoiser.prompt_length], dim=1)
    return {"condition_norm": shared.mean()} | ({"patch_token_norm": own.mean()} if own.numel() else {})
