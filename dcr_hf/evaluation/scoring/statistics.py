"""95 % intervals, and paired tests of two encoders on the same items."""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES = 1000
LEVEL = 0.95


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): correct for few trials and near 0 and 1, unlike the normal one."""
    z = norm.ppf((1 + LEVEL) / 2)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], units: np.ndarray, seed: int = 0) -> np.ndarray:
    """The statistic on RESAMPLES resamples of the units, drawn with replacement.

    Args:
        statistic: item weights (N,) -> values of any shape; a weight is how often the item was drawn.
        units: (N,), each item's unit, integers from 0: items of one unit (captions of an image) are drawn together.
            The same seed and number of units give the same draws, which pairs two encoders.

    Returns:
        (RESAMPLES, ...)
    """
    generator = np.random.default_rng(seed)
    count = int(units.max()) + 1
    draws = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    return np.stack([statistic(drawn[units].astype(np.float64)) for drawn in draws])


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A statistic for `bootstrap`: the mean of `values` (N, ...) under item weights (N,)."""
    return lambda weights: weights @ values / weights.sum()


def interval(value: float, samples: np.ndarray, lowest: float = 0.0) -> tuple[float, float]:
    """95 % interval around `value` from the spread of bootstrap `samples` (RESAMPLES,).

    The spread is taken around the samples' own mean: resampling repeats items, which lifts NMI and ARI a little, and
    the plain percentiles would inherit that bias.
    """
    low, high = _around(value, samples)
    return max(lowest, low), min(1.0, high)


def _around(value: float, samples: np.ndarray) -> tuple[float, float]:
    tails = np.quantile(samples - samples.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(value + tails[0]), float(value + tails[1])


def bootstrap_p(difference: float, samples_a: np.ndarray, samples_b: np.ndarray) -> float:
    """Two-sided p-value of `difference` = b - a, from paired samples (RESAMPLES,) of both: how often the centred
    difference is as large. At least 1 / (RESAMPLES + 1)."""
    spread = samples_b - samples_a
    spread = np.abs(spread - spread.mean())
    return float((1 + np.sum(spread >= abs(difference) - 1e-12)) / (1 + len(spread)))


def mcnemar_p(correct_a: np.ndarray, correct_b: np.ndarray) -> float:
    """Exact two-sided McNemar test of two encoders on the same items: (N,) booleans each. Only items that exactly one
    of them has right count; 1.0 where there are none."""
    gained, lost = int(np.sum(~correct_a & correct_b)), int(np.sum(correct_a & ~correct_b))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def difference_interval(difference: float, samples_a: np.ndarray, samples_b: np.ndarray) -> tuple[float, float]:
    """95 % interval of `difference` = b - a, from paired samples (RESAMPLES,) of both."""
    return _around(difference, samples_b - samples_a)


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of a difference (gained - lost) / n between two shares of the same n items.

    Agresti and Min (2005): Wald's interval with half an item added to each of the four cells, so that the interval
    has a width even if nothing changed.
    """
    gained_, lost_, n_ = gained + 0.5, lost + 0.5, n + 2
    center = (gained_ - lost_) / n_
    half = norm.ppf((1 + LEVEL) / 2) * np.sqrt(gained_ + lost_ - (gained_ - lost_) ** 2 / n_) / n_
    return float(center - half), float(center + half)
