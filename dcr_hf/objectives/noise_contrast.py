"""The paper's objective: a contrast between the denoiser's predictions."""

import torch
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Batch, Outcome, Settings
from dcr_hf.objectives.fidelity import condition_norm, contrast_metrics, noise_errors
from dcr_hf.objectives.losses import cosines, info_nce_of_each
from dcr_hf.objectives.negatives import choose_negatives, gather_conditions, log_weights_by_similarity
from dcr_hf.objectives.spaces import contrast_space


def dcr(denoiser: FrozenDenoiser, batch: Batch, settings: Settings) -> Outcome:
    """The paper's objective, `dcr_loss`, on the chosen pairs. By default B * B + B UNet evaluations.

    Not the paper's: with `settings.anchor_weight` the mean squared error of the own prediction is added, with
    `settings.weight_negatives` similar images count less.
    """
    diffused, conditions, which = batch.diffuse(), batch.conditions, settings.negatives
    if which.gather:
        all_conditions, first = gather_conditions(conditions)  # (W * B, C)
    else:
        all_conditions, first = conditions, 0
    own = first + torch.arange(len(conditions), device=conditions.device)[:, None]  # (B, 1)
    others = choose_negatives(own, len(all_conditions), which.count)  # (B, M)
    view = own - first + len(all_conditions)  # (B, 1)
    table = torch.cat([all_conditions, batch.view_conditions])
    n, t = diffused.noisy_latents, diffused.timesteps
    if which.detach:
        anchors, views = denoiser.predict_chosen(n, t, table, torch.cat([own, view], dim=1)).unbind(dim=1)
        with torch.no_grad():
            negatives = denoiser.predict_chosen(n, t, table, others)  # (B, M, 4, h, w)
    else:
        # The view is one more condition of the same latent.
        predictions = denoiser.predict_chosen(n, t, table, torch.cat([own, view, others], dim=1))
        anchors, views, negatives = predictions[:, 0], predictions[:, 1], predictions[:, 2:]
    transform, target, empty = contrast_space(settings.space, denoiser, diffused)
    anchors_there = transform(anchors[:, None])[:, 0]
    to_positives = cosines(anchors_there, torch.cat([transform(views[:, None]), target[:, None]], dim=1))  # (B, 2)
    to_negatives = cosines(anchors_there, transform(negatives))  # (B, M)
    weights = _log_weights(batch, settings, others)
    of_view, of_target = info_nce_of_each(to_positives, to_negatives, settings.temperature, weights).unbind()
    loss = (of_view + of_target) / 2
    if settings.anchor_weight:
        loss = loss + settings.anchor_weight * (anchors - diffused.target).square().mean()
    with torch.no_grad():
        under = {"own": anchors, "view": views, "other": negatives[:, 0]} | ({} if empty is None else {"empty": empty})
        metrics = contrast_metrics(to_positives, to_negatives)
        metrics |= noise_errors(denoiser, diffused, **under) | condition_norm(denoiser, conditions)
        metrics |= {} if weights is None else {"negative_weight/smallest": weights.exp().amin(dim=1).mean()}
    return Outcome(loss, metrics, {"view": of_view, "target": of_target})


def _log_weights(batch: Batch, settings: Settings, others: Tensor) -> Tensor | None:
    """(B, M), see `log_weights_by_similarity`; None where all negatives count alike."""
    if not settings.weight_negatives:
        return None
    assert batch.originals is not None
    gather = settings.negatives.gather
    all_originals = gather_conditions(batch.originals)[0] if gather else batch.originals
    return log_weights_by_similarity(batch.originals, all_originals, others)
