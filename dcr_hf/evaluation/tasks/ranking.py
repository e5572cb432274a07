"""Rankings with one rule for ties, so that scores do not depend on a library's choice."""

import numpy as np


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest scores of each row, best first; ties go to the lower index.

    Args:
        scores: (N, C) with C >= k.

    Returns:
        (N, k)
    """
    threshold = np.partition(scores, -k, axis=1)[:, -k, None]  # (N, 1), the k-th largest score
    best = np.empty((len(scores), k), dtype=np.int64)
    candidates = scores >= threshold
    for row, (values, chosen) in enumerate(zip(scores, candidates, strict=True)):
        indices = np.flatnonzero(chosen)  # more than k only if the k-th score is tied
        best[row] = indices[np.argsort(-values[indices], kind="stable")][:k]
    return best


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) -> rows of unit length, float32; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
