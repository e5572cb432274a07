"""Intervals and paired tests against known values, and against how often they are right."""

import numpy as np
import pytest
from scipy.stats import norm

from dcr_hf.evaluation.scoring.statistics import (
    RESAMPLES,
    bootstrap,
    bootstrap_p,
    difference_interval,
    interval,
    mcnemar_p,
    paired_interval,
    wilson,
)


def test_wilson_by_its_formula():
    k, n, z = 26, 135, norm.ppf(0.975)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    assert wilson(26 / 135, 135) == pytest.approx((centre - half, centre + half))
    assert wilson(0.0, 15)[0] == 0.0 and wilson(0.0, 15)[1] > 0.15
    assert wilson(1.0, 15)[1] == 1.0


def test_mcnemar_by_hand():
    a = np.array([True] * 10 + [False] * 10)
    b = a.copy()
    assert mcnemar_p(a, b) == 1.0
    b[10:16] = True  # six gained, none lost: 2 * (1/2)^6
    assert mcnemar_p(a, b) == pytest.approx(2 / 2**6)
    assert mcnemar_p(b, a) == mcnemar_p(a, b)
    b[0] = False  # six gained, one lost: 2 * (1 + 7) / 2^7
    assert mcnemar_p(a, b) == pytest.approx(2 * 8 / 2**7)


def mean(values):
    return lambda weights: weights @ values / weights.sum()


def test_bootstrap_has_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    samples = bootstrap(mean(values), np.arange(400))
    assert samples.shape == (RESAMPLES,)
    assert samples.std() == pytest.approx(values.std() / 20, rel=0.1)
    low, high = interval(0.5, samples)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_items_of_a_unit_are_drawn_together():
    """Five copies of each of 50 values are 50 observations, not 250."""
    values = np.random.default_rng(0).normal(size=50)
    together = bootstrap(mean(np.repeat(values, 5)), np.repeat(np.arange(50), 5))
    apart = bootstrap(mean(np.repeat(values, 5)), np.arange(250))
    assert together.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.1)
    assert together.std() > 2 * apart.std()


def test_interval_is_centred_and_bounded():
    samples = np.linspace(0.8, 0.9, 1000)  # as from a biased statistic: the value itself is 0.7
    assert interval(0.7, samples) == pytest.approx((0.6525, 0.7475), abs=1e-3)
    assert interval(0.99, samples)[1] == 1.0
    assert interval(0.01, samples)[0] == 0.0
    assert interval(0.01, samples, lowest=-1.0)[0] < 0.0


def test_paired_p_value_is_uniform_without_an_effect_and_small_with_one():
    generator = np.random.default_rng(0)
    small = 0
    for trial in range(60):
        shared = generator.normal(size=200)
        a, b = shared + generator.normal(size=(2, 200)) * 0.3
        p = bootstrap_p(b.mean() - a.mean(), *(bootstrap(mean(each), np.arange(200), seed=trial) for each in (a, b)))
        small += p < 0.05
    assert small <= 9  # expected 3 of 60
    a, b = shared, shared + 0.1 + generator.normal(size=200) * 0.3
    p = bootstrap_p(b.mean() - a.mean(), *(bootstrap(mean(each), np.arange(200)) for each in (a, b)))
    assert p < 0.01  # unpaired, a difference of 0.1 between 2 x 200 standard normals would be lost in the noise


def test_no_difference_is_no_finding():
    samples = bootstrap(mean(np.arange(10.0)), np.arange(10))
    assert bootstrap_p(0.0, samples, samples) == 1.0


def test_intervals_of_a_difference_hold_the_truth_in_95_of_100_draws():
    random, covered, covered_by_bootstrap = np.random.default_rng(0), 0, 0
    for _ in range(400):
        cells = random.choice(4, p=[0.5, 0.3, 0.15, 0.05], size=120)  # both right, both wrong, gained, lost
        gained, lost = (cells == 2).sum(), (cells == 3).sum()
        low, high = paired_interval(int(gained), int(lost), 120)
        covered += low < 0.15 - 0.05 < high
        a, b = np.isin(cells, (0, 3)).astype(float), np.isin(cells, (0, 2)).astype(float)
        draws = random.integers(120, size=(300, 120))
        low, high = difference_interval(b.mean() - a.mean(), a[draws].mean(axis=1), b[draws].mean(axis=1))
        covered_by_bootstrap += low < 0.1 < high
    assert 0.92 < covered / 400 < 0.985
    assert 0.91 < covered_by_bootstrap / 400 < 0.985


def test_the_interval_of_a_difference_turns_with_the_order_and_has_a_width_where_nothing_changed():
    low, high = paired_interval(9, 2, 50)
    assert paired_interval(2, 9, 50) == pytest.approx((-high, -low))
    low, high = paired_interval(0, 0, 50)
    assert low == pytest.approx(-high) and 0 < high < 0.05
