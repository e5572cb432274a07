"""Paired tests of encoders on the items that both were measured on."""

import logging

import numpy as np

from dcr_hf.errors import UserError
from dcr_hf.evaluation.benchmarks import BENCHMARKS
from dcr_hf.evaluation.scoring.results import Results, read_rows
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.evaluation.scoring.statistics import bootstrap_p, difference_interval, mcnemar_p, paired_interval

SIGNIFICANT = 0.05
_KEY = ("encoder", "benchmark", "dataset", "metric")
logger = logging.getLogger(__name__)


def collect(results: Results, scored: dict[tuple[str, str, str], Scored]) -> None:
    """Fill `results` with all scores, by (encoder, benchmark, set), and the comparisons between encoders."""
    results.results = [
        {
            "encoder": encoder,
            "benchmark": benchmark,
            **row,
            **({"feature": each.feature} if each.feature else {}),
            "dtype": results.encoders[encoder]["dtype"],
        }
        for (encoder, benchmark, _), each in scored.items()
        for row in each.scores
    ]
    results.comparisons = compare(results, scored)


def compare(results: Results, scored: dict[tuple[str, str, str], Scored]) -> list[dict]:
    """Compare every encoder with the first, on every metric.

    Args:
        scored: by (encoder, benchmark, set).

    Returns:
        Rows of results.comparisons, each difference with its 95 % interval. Where items or features differ there is
        a warning instead of a row. `noise`: p is not below 0.05, so the difference may be chance.
    """
    reference, *others = results.encoders
    values = {tuple(row[part] for part in _KEY): row["value"] for row in results.results}
    rows, order = [], list(dict.fromkeys(benchmark for _, benchmark, _ in scored))
    for encoder in others:
        for (name, benchmark, dataset), right in sorted(scored.items(), key=lambda each: order.index(each[0][1])):
            left = scored.get((reference, benchmark, dataset))
            if name != encoder or left is None:
                continue
            if left.items != right.items or left.feature != right.feature:
                what = "items" if left.items != right.items else "features"
                logger.warning("%s, %s: %s and %s differ in %s", benchmark, dataset, reference, encoder, what)
                continue
            for part, metric in {**right.samples, **right.correct}:
                a, b = (values[each, benchmark, part, metric] for each in (reference, encoder))
                test = _test(left, right, part, metric, b - a)
                labels = {"encoder": encoder, "reference": reference, "benchmark": benchmark, "dataset": part}
                rows.append({**labels, "metric": metric, "difference": b - a, **test})
    return [{**row, "noise": row["p"] >= SIGNIFICANT} for row in rows]


def _test(left: Scored, right: Scored, dataset: str, metric: str, difference: float) -> dict:
    key = (dataset, metric)
    if key in right.correct:
        a, b = left.correct[key], right.correct[key]
        gained, lost = int(np.sum(~a & b)), int(np.sum(a & ~b))
        low, high = paired_interval(gained, lost, len(a))
        return {"low": low, "high": high, "test": "mcnemar", "p": mcnemar_p(a, b), "gained": gained, "lost": lost}
    samples_a, samples_b = left.samples[key], right.samples[key]
    low, high = difference_interval(difference, samples_a, samples_b)
    return {"low": low, "high": high, "test": "bootstrap", "p": bootstrap_p(difference, samples_a, samples_b)}


def score_predictions(results: Results) -> dict[tuple[str, str, str], Scored]:
    """Compute the scores again from the prediction files, by (encoder, benchmark, set).

    Raises:
        UserError: predictions of another benchmark, such as those of recipes/evaluate_mllm.py.
    """
    scored = {}
    for row in results.predictions:
        if row["benchmark"] not in BENCHMARKS:
            raise UserError(f"benchmark {row['benchmark']!r} is none of {', '.join(BENCHMARKS)}: {row['path']}.")
        each = BENCHMARKS[row["benchmark"]].score(row["set"], read_rows(row["path"]))
        each.feature = row["feature"]
        scored[row["encoder"], row["benchmark"], row["set"]] = each
    return scored


def mean_clustering(scored: dict[tuple[str, str, str], Scored]) -> dict[tuple[str, str, str], Scored]:
    """The mean over the clustering sets of each encoder that has several, as the paper reports it."""
    means = {}
    for encoder in dict.fromkeys(name for name, _, _ in scored):
        parts = {key[2]: each for key, each in scored.items() if key[:2] == (encoder, "clustering")}
        if len(parts) < 2:
            continue
        first = next(iter(parts.values()))
        mean = Scored([item for part in parts.values() for item in part.items], first.feature)
        for metric in ("nmi", "acc", "ari"):
            rows = [row for part in parts.values() for row in part.scores if row["metric"] == metric]
            samples = np.mean([part.samples[name, metric] for name, part in parts.items()], axis=0)
            value = float(np.mean([row["value"] for row in rows]))
            mean.resampled("mean", metric, value, sum(row["n"] for row in rows), samples, sets=list(parts))
        means[encoder, "clustering", "mean"] = mean
    return means
