"""The paper's first theorem in numbers: the scatter of embeddings against that of predictions.

Gram matrices suffice for scatter and distances: G[i, j] = <x_i, x_j>, (N, N), of vectors from any one origin.
"""

from collections.abc import Sequence

import numpy as np

from dcr_hf.errors import UserError

WAYS = ("within", "between")
# Squared distance below which two embeddings count as one point and define no slope.
_SAME = 1e-10


def scatter(gram: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Scatter within and between the classes of points with this Gram matrix (N, N) and labels (N,).

    S_within = sum_i |x_i - mu_c(i)|^2 / N,  S_between = sum_c n_c |mu_c - mu|^2 / N
    """
    averages, shares = _averages(labels)
    means = averages @ gram @ averages.T  # (C, C), of the classes' means
    within = np.trace(gram) / len(gram) - shares @ np.diag(means)
    between = shares @ np.diag(means) - shares @ means @ shares
    return float(within), float(between)


def slopes(embeddings: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """m, the largest number with |p_i - p_j| >= m |z_i - z_j|, by the Gram matrices (N, N) of the same images.

    Returns:
        over all pairs of images, which bounds the scatter within classes; and over all pairs of classes' means, which
        bounds that between them. The mean of predictions is not the prediction under the mean condition: the first
        does not bound the second.

    Raises:
        UserError: there is no scatter to compare, or no m above 0.
    """
    averages, _ = _averages(labels)
    of_means = (averages @ gram @ averages.T for gram in (embeddings, predictions))
    return _slope("images", embeddings, predictions), _slope("classes' means", *of_means)


def _slope(what: str, embeddings: np.ndarray, predictions: np.ndarray) -> float:
    apart = squared_distances(embeddings)
    different = apart > _SAME
    if not different.any():
        raise UserError(f"all {what} have one embedding: there is no scatter to compare.")
    least = (squared_distances(predictions)[different] / apart[different]).min()
    if least <= 0:
        raise UserError(
            f"two {what} with different embeddings have one prediction: theorem 1 needs an m above 0. Does the "
            "projector belong to this encoder and denoiser?"
        )
    return float(np.sqrt(least))


def squared_distances(gram: np.ndarray) -> np.ndarray:
    """|x_i - x_j|^2 for all i < j, (N * (N - 1) / 2,)."""
    norms = np.diag(gram)
    distances = norms[:, None] + norms - 2 * gram
    return distances[np.triu_indices(len(gram), k=1)].clip(min=0)


def _averages(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (C, N) that maps points to their classes' means, and the classes' shares (C,)."""
    members = (labels == np.unique(labels)[:, None]).astype(float)  # (C, N)
    counts = members.sum(axis=1)
    return members / counts[:, None], counts / len(labels)


def compare(embeddings: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Both scatters, their ratio, m, and theorem 1's bound on the ratio, 1 / m^2, for each of `WAYS`.

    Args:
        embeddings, predictions: Gram matrices (N, N) of the same images.
        labels: (N,).
    """
    found = {}
    each = scatter(embeddings, labels), scatter(predictions, labels), slopes(embeddings, predictions, labels)
    for way, of_embeddings, of_predictions, slope in zip(WAYS, *each, strict=True):
        ratio, bound = of_embeddings / of_predictions, slope**-2
        found[way] = {
            "embeddings": of_embeddings,
            "predictions": of_predictions,
            "ratio": ratio,
            "m": slope,
            "bound": bound,
            "share_of_bound": ratio / bound,
        }
    return found


def over_seeds(seeds: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over the results of `compare` for each seed."""
    return {way: {name: _spread([seed[way][name] for seed in seeds]) for name in seeds[0][way]} for way in WAYS}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
