"""Losses: tensors in, tensors out, without models, ranks or configuration."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The smallest norm divided by. Avoids unbounded gradients for near-zero residuals.
_SHORTEST = 1e-6


def dcr_cosines(predictions: Tensor, view_predictions: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines between every anchor and its candidates, in float32 at least.

    Args:
        predictions: P (B, B, *S); [i, j] is the prediction for noisy latent i under the condition of image j.
        view_predictions: P+ (B, *S); latent i under the condition of the augmented view of image i.
        target: y (B, *S); what the denoiser was trained to predict for latent i.

    Returns:
        positives (B, 2), the cosines of a_i = P[i, i] to P+[i] and to y_i, and
        negatives (B, B - 1), to P[i, j] for j != i in ascending order of j.

    Raises:
        ValueError: shapes that do not fit, or B = 1, which has no negatives.
    """
    batch = target.shape[0]
    if predictions.shape != (batch, *target.shape) or view_predictions.shape != target.shape:
        raise ValueError(
            f"predictions must be (B, B, *S) and view_predictions and target (B, *S), got {tuple(predictions.shape)}, "
            f"{tuple(view_predictions.shape)} and {tuple(target.shape)}."
        )
    if batch < 2:
        raise ValueError("a batch of 1 has no negatives: the DCR loss needs at least 2 images on each device.")
    anchors = predictions.diagonal().movedim(-1, 0)  # (B, *S)
    positives = torch.cat([cosines(anchors, view_predictions[:, None]), cosines(anchors, target[:, None])], dim=1)
    to_all = cosines(anchors, predictions)  # (B, B)
    # Off-diagonal entries by shape alone: with a boolean mask the host would wait for the device.
    negatives = to_all.flatten()[1:].view(batch - 1, batch + 1)[:, :-1].reshape(batch, batch - 1)
    return positives, negatives


def cosines(anchors: Tensor, candidates: Tensor) -> Tensor:
    """anchors (B, *S), candidates (B, M, *S) -> the cosine of each anchor to its own candidates, (B, M).

    In float32, or float64 for float64 inputs, whatever autocast is active.
    """
    # Under autocast the product would run in half precision, whatever its inputs' dtype.
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = torch.promote_types(candidates.dtype, torch.float32)
        anchors = F.normalize(anchors.flatten(1).to(dtype), dim=-1, eps=_SHORTEST)  # (B, N)
        candidates = F.normalize(candidates.flatten(2).to(dtype), dim=-1, eps=_SHORTEST)  # (B, M, N)
        return torch.einsum("bn,bmn->bm", anchors, candidates)


def info_nce_of_each(
    positives: Tensor, negatives: Tensor, temperature: float, log_weights: Tensor | None = None
) -> Tensor:
    """InfoNCE for each positive separately; an anchor's positives are all in the denominator.

    Args:
        positives: (B, P) similarities of each anchor to its positives.
        negatives: (B, K) similarities of each anchor to its negatives.
        temperature: divides every similarity.
        log_weights: (B, K), the logarithm of how often each negative counts in the denominator; None for once.

    Returns:
        (P,), the mean over anchors of -log softmax over all P + K candidates.
    """
    logits = negatives / temperature
    if log_weights is not None:
        logits = logits + log_weights
    log_probabilities = F.log_softmax(torch.cat([positives / temperature, logits], dim=1), dim=1)
    return -log_probabilities[:, : positives.shape[1]].mean(dim=0)


def multi_positive_info_nce(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The mean of `info_nce_of_each` over the positives, a scalar."""
    return info_nce_of_each(positives, negatives, temperature).mean()


def dcr_loss(predictions: Tensor, view_predictions: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    r"""The noise-space InfoNCE of Diffusion Contrastive Reconstruction (arXiv 2603.04803).

    Every prediction is flattened and scaled to unit length; s is the cosine. With the anchor a_i = P[i, i], the
    positives {P+[i], y_i} and the negatives {P[i, j], j != i},

        L = mean_i 1/2 sum_p -log( exp(s(a_i, p) / T) / sum_q exp(s(a_i, q) / T) )

    where p runs over both positives and q over both positives and all negatives.

    Gradients flow through every prediction, negatives included. Computed as a log-softmax in float32 (float64 for
    float64 inputs), whatever the inputs' dtype and whatever autocast is active.

    Relations: when all candidates are equal it is log(B + 1). Where many unrelated negatives outweigh the
    positives in the sum over q, it is the reconstruction of y and of P+ by cosine, divided by T, plus a constant (the
    paper's second theorem). Where the positives outweigh the negatives it tends to log 2 cosh((s(a, P+) - s(a, y)) /
    2T), which equals the former only if P+ equals a; docs/diagnostics.md derives both.

    Args:
        predictions: P (B, B, *S); [i, j] is latent i under condition j.
        view_predictions: P+ (B, *S).
        target: y (B, *S).
        temperature: T, 0.1 in the paper.

    Returns:
        scalar.

    Raises:
        ValueError: shapes that do not fit; a batch of 1.
    """
    return multi_positive_info_nce(*dcr_cosines(predictions, view_predictions, target), temperature)


def embedding_info_nce(embeddings: Tensor, view_embeddings: Tensor, temperature: float = 0.1) -> Tensor:
    r"""InfoNCE between embeddings of images and of their views (van den Oord et al., arXiv 1807.03748).

    With s the cosine, an image's own view is its positive and the other images' views are its negatives:

        L = mean_i -log( exp(s(z_i, z_i+) / T) / sum_j exp(s(z_i, z_j+) / T) )

    Relations: `dcr_loss` has the same form on predictions instead of embeddings, with the target as a second positive.
    Computed in float32 (float64 for float64 inputs), whatever autocast is active.

    Args:
        embeddings: z (B, D) of the images, of any length.
        view_embeddings: z+ (B, D) of their views.
        temperature: T.

    Returns:
        scalar.
    """
    return multi_positive_info_nce(*embedding_cosines(embeddings, view_embeddings), temperature)


def embedding_cosines(embeddings: Tensor, view_embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """z, z+ (B, D) -> the cosines of each image to its own view (B, 1) and to the others' (B, B - 1)."""
    batch = len(embeddings)
    numbers = torch.arange(batch, device=embeddings.device)
    others = (numbers[:, None] + numbers[1:]) % batch  # (B, B - 1)
    to_views = cosines(embeddings, view_embeddings.expand(batch, -1, -1))  # (B, B)
    return to_views.diagonal()[:, None], to_views.gather(1, others)


def keep_distance(embeddings: Tensor, originals: Tensor) -> Tensor:
    """The mean of 1 - cosine between embeddings (B, D) and the original encoder's for the same images."""
    return 1 - cosines(embeddings, originals[:, None]).mean()
