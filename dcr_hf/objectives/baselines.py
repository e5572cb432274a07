"""The paper's baselines: reconstruction alone, contrast alone, and their sum."""

import functools

import torch

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Batch, Outcome, Settings
from dcr_hf.objectives.fidelity import condition_norm, noise_errors
from dcr_hf.objectives.losses import cosines, embedding_cosines, multi_positive_info_nce

LOGGED = 4  # images of a batch whose error under another image's condition is logged: it costs an evaluation each


def reconstruction(denoiser: FrozenDenoiser, batch: Batch, settings: Settings) -> Outcome:
    """The mean squared error to y under each image's own condition: the loss that the denoiser was trained with.

    DIVA and GenHancer train with it. B UNet evaluations, and up to LOGGED without gradient for the log.
    """
    diffused = batch.diffuse()
    n, t = diffused.noisy_latents, diffused.timesteps
    own = denoiser.predict(n, t, batch.conditions)
    loss = (own - diffused.target).square().mean()
    with torch.no_grad():
        some = diffused.first(LOGGED)
        others = batch.conditions.roll(1, dims=0)[:LOGGED]
        metrics = {
            "loss/reconstruction": loss.detach(),
            "cosine/target": cosines(own, diffused.target[:, None]).mean(),
        }
        metrics |= noise_errors(denoiser, diffused, own=own)
        metrics |= noise_errors(denoiser, some, other=denoiser.predict(some.noisy_latents, some.timesteps, others))
        metrics |= condition_norm(denoiser, batch.conditions)
    return Outcome(loss, metrics, {"reconstruction": loss})


def contrastive(denoiser: FrozenDenoiser, batch: Batch, settings: Settings) -> Outcome:
    """InfoNCE between the embeddings of images and their views, `embedding_info_nce`. The denoiser is unused."""
    to_view, to_others = embedding_cosines(batch.embeddings, batch.view_embeddings)
    loss = multi_positive_info_nce(to_view, to_others, settings.temperature)
    with torch.no_grad():
        metrics = {
            "loss/contrastive": loss.detach(),
            "embedding_cosine/view": to_view.mean(),
            "embedding_cosine/other": to_others.mean(),
            "embedding_nearest_is_view": (to_view[:, 0] > to_others.amax(dim=1)).float().mean(),
        }
    return Outcome(loss, metrics, {"contrastive": loss})


def joint(denoiser: FrozenDenoiser, batch: Batch, settings: Settings) -> Outcome:
    """The naive sum, lambda_rec * reconstruction + lambda_con * contrastive. A loss of weight 0 is not computed."""
    parts = [
        (weight, objective(denoiser, batch, settings))
        for weight, objective in ((settings.lambda_rec, reconstruction), (settings.lambda_con, contrastive))
        if weight
    ]
    loss = functools.reduce(torch.add, (weight * part.loss for weight, part in parts))
    metrics = {name: value for _, part in parts for name, value in part.metrics.items()}
    return Outcome(loss, metrics, {name: term for _, part in parts for name, term in part.terms.items()})
