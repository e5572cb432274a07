"""The paper's objective: a contrast between the denoiser's predictions."""

import torch

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.losses import cosines, multi_positive_info_nce
from dcr_hf.objectives.batch import Batch, Outcome, Settings
from dcr_hf.objectives.fidelity import contrast_metrics, fidelity_metrics
from dcr_hf.objectives.negatives import choose_negatives, gather_conditions


def dcr(denoiser: FrozenDenoiser, batch: Batch, settings: Settings) -> Outcome:
    """The paper's objective, `dcr_loss`, on the pairs it needs. By default B * B + B UNet evaluations."""
    diffused, conditions, which = batch.diffuse(), batch.conditions, settings.negatives
    if which.gather:
        everyones, first = gather_conditions(conditions)  # (W * B, C)
    else:
        everyones, first = conditions, 0
    own = first + torch.arange(len(conditions), device=conditions.device)[:, None]  # (B, 1)
    others = choose_negatives(own, len(everyones), which.count)  # (B, M)
    view = own - first + len(everyones)  # (B, 1)
    table = torch.cat([everyones, batch.view_conditions])
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
    loss = multi_positive_info_nce(to_positives, to_negatives, settings.temperature)
    with torch.no_grad():
        metrics = contrast_metrics(to_positives, to_negatives)
        metrics |= fidelity_metrics(denoiser, diffused, anchors, views, negatives[:, 0], conditions)
    return Outcome(loss, metrics)
