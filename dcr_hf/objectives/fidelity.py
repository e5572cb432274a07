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


def noise_errors(denoiser: FrozenDenoiser, diffused: Diffused, **predictions: Tensor) -> dict[str, Tensor]:
    """Is the condition one that the denoiser understands? The contrast can be won by leaving those.

    The mean squared error of the noise, by name of what each prediction (B, 4, h, w) was made under: the image's own
    condition, its view's, another image's, the empty prompt. A faithful condition predicts best under its own.
    """
    n, t, noise = diffused.noisy_latents, diffused.timesteps, diffused.noise
    return {
        f"noise_mse/{name}": (denoiser.as_noise(predicted, n, t) - noise).square().mean()
        for name, predicted in predictions.items()
    }


def condition_norm(denoiser: FrozenDenoiser, conditions: Tensor) -> dict[str, Tensor]:
    """The mean norm of the conditions (B, C), as a multiple of that of a token of the empty prompt; of conditions
    (B, 77 + M, C) beside it that of the M tokens of their own."""
    norms = conditions.norm(dim=-1) / denoiser.token_norm
    if conditions.ndim == 2:
        return {"condition_norm": norms.mean()}
    shared, own = norms.tensor_split([denoiser.prompt_length], dim=1)
    return {"condition_norm": shared.mean()} | ({"patch_token_norm": own.mean()} if own.numel() else {})
