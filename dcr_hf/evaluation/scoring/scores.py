"""Predictions -> scores, computed from the stored rows alone, so that they can be reproduced."""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from dcr_hf.evaluation.scoring.statistics import bootstrap, interval, weighted_mean, wilson
from dcr_hf.metrics import load_metric


@dataclass
class Scored:
    """Scores of one encoder on one set, with the data for paired tests against another encoder.

    Attributes:
        scores: rows of results.json without the encoder: dataset, metric, value, n, low, high, interval, ...
        items: names and right answers of the items, in order; equal in a paired test.
        feature: the image feature that was scored; equal in a paired test.
        samples: bootstrap samples (RESAMPLES,) by (dataset, metric).
        correct: (N,) booleans by (dataset, metric), where McNemar's test applies.
    """

    items: list[str]
    feature: str = ""
    scores: list[dict] = field(default_factory=list)
    samples: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    correct: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def proportion(self, dataset: str, metric: str, value: float, right: np.ndarray, **facts: object) -> None:
        """Add a share of right items, with Wilson's interval."""
        low, high = wilson(right.mean(), len(right))
        self._add(dataset, metric, value, len(right), low, high, interval="wilson", count=int(right.sum()), **facts)

    def resampled(
        self, dataset: str, metric: str, value: float, n: int, samples: np.ndarray, units: int | None = None, **facts
    ) -> None:
        """Add any other score, with a bootstrap interval over `units` (default n). If all resamples agree (all right,
        all wrong) the interval would be a point: Wilson's is used instead. ARI may be negative."""
        self.samples[dataset, metric] = samples
        if np.ptp(samples) < 1e-12 and 0 <= value <= 1:
            self._add(dataset, metric, value, n, *wilson(value, units or n), interval="wilson", **facts)
            return
        low, high = interval(value, samples, lowest=-1.0 if metric == "ari" else 0.0)
        self._add(dataset, metric, value, n, low, high, interval="bootstrap", **facts)

    def _add(self, dataset, metric, value, n, low, high, **facts):
        row = {"dataset": dataset, "metric": metric, "value": float(value), "n": n, "low": low, "high": high}
        self.scores.append({**row, **facts})


def score_pairs(dataset: str, rows: list[dict]) -> Scored:
    """pair_accuracy of each category and, under the dataset `all`, their mean with the count of right pairs."""
    right = np.array([row["correct"] for row in rows])
    categories = [row["category"] for row in rows]
    values = load_metric("paired_accuracy").compute(
        predictions=[choice for row in rows for choice in row["predictions"]],
        references=[choice for row in rows for choice in row["references"]],
        categories=categories,
    )
    scored = Scored([f"{row['item']} {row['references']}" for row in rows])
    for name, value in [("all", values["pair_accuracy"]), *values["by_category"].items()]:
        chosen = right if name == "all" else right[np.array(categories) == name]
        scored.proportion(name, "pair_accuracy", value, chosen, chance=0.25)
        scored.correct[name, "pair_accuracy"] = chosen
    return scored


def score_clusters(dataset: str, rows: list[dict]) -> Scored:
    """NMI, ACC, ARI: the mean over the seeds, with their standard deviation and each seed's value.

    The interval covers both sources of chance: images and seeds are resampled.
    """
    labels = np.array([row["label"] for row in rows])
    clusters = np.array([row["clusters"] for row in rows])  # (N, seeds)
    values = [load_metric("clustering").compute(predictions=column, references=labels) for column in clusters.T]
    statistics = [_Contingency(labels, column) for column in clusters.T]
    samples = bootstrap(lambda weights: np.stack([each(weights) for each in statistics]), np.arange(len(rows)))
    drawn = np.random.default_rng(1).integers(len(statistics), size=samples.shape[:2])  # (RESAMPLES, seeds)
    samples = np.take_along_axis(samples, drawn[..., None], axis=1).mean(axis=1)  # (RESAMPLES, 3)
    scored = Scored([f"{row['item']} {row['label']}" for row in rows])
    for column, metric in enumerate(("nmi", "acc", "ari")):
        by_seed = [value[metric] for value in values]
        spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else 0.0
        scored.resampled(dataset, metric, np.mean(by_seed), len(rows), samples[:, column], std=spread, by_seed=by_seed)
    return scored


class _Contingency:
    """NMI, ACC and ARI as functions of item weights; the matching of ACC is that of all items."""

    def __init__(self, labels: np.ndarray, clusters: np.ndarray):
        self.items, (self.rows, self.columns) = _cells(labels, clusters)
        table = np.zeros((self.rows.max() + 1, self.columns.max() + 1))
        np.add.at(table, (self.rows, self.columns), np.bincount(self.items))
        best = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
        self.matched = np.array([best.get(row) == column for row, column in zip(self.rows, self.columns, strict=True)])

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(N,) -> (3,)"""
        cells = np.bincount(self.items, weights)
        rows, columns, total = np.bincount(self.rows, cells), np.bincount(self.columns, cells), cells.sum()
        entropies = _entropy(rows), _entropy(columns)
        mutual = max(sum(entropies) - _entropy(cells), 0.0)
        nmi = mutual / np.mean(entropies) if sum(entropies) else 1.0
        pairs, row_pairs, column_pairs = (np.sum(counts * (counts - 1)) for counts in (cells, rows, columns))
        expected = row_pairs * column_pairs / (total * (total - 1))
        highest = (row_pairs + column_pairs) / 2
        ari = (pairs - expected) / (highest - expected) if highest != expected else 1.0
        return np.array([nmi, cells[self.matched].sum() / total, ari])


def _cells(labels: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item's occupied cell of the contingency table, and the cells' (label, cluster)."""
    cells, items = np.unique(np.stack([labels, clusters]), axis=1, return_inverse=True)
    return items.ravel(), cells


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def score_classes(dataset: str, rows: list[dict]) -> Scored:
    """acc1, acc5 (with five classes or more) and mean per-class recall."""
    ranked, labels = np.array([row["ranked"] for row in rows]), np.array([row["label"] for row in rows])
    values = load_metric("classification").compute(predictions=ranked, references=labels)
    scored = Scored([f"{row['item']} {row['label']}" for row in rows])
    hits = {"acc1": ranked[:, 0] == labels, "acc5": (ranked == labels[:, None]).any(axis=1)}
    _, classes = np.unique(labels, return_inverse=True)

    def statistic(weights: np.ndarray) -> np.ndarray:
        counts = np.bincount(classes, weights)
        recalls = np.bincount(classes, weights * hits["acc1"])[counts > 0] / counts[counts > 0]
        return np.array([*(weights @ hit / weights.sum() for hit in hits.values()), recalls.mean()])

    samples = bootstrap(statistic, np.arange(len(rows)))
    for column, (metric, right) in enumerate(hits.items()):
        if metric in values:
            scored.proportion(dataset, metric, values[metric], right)
            scored.samples[dataset, metric] = samples[:, column]
    metric = "mean_per_class_recall"
    scored.resampled(dataset, metric, values[metric], len(rows), samples[:, 2])
    return scored


def score_probe(dataset: str, rows: list[dict]) -> Scored:
    """As `score_classes`, with the C that was chosen."""
    scored = score_classes(dataset, rows)
    scored.scores = [{**row, "C": rows[0]["C"]} for row in scored.scores]
    return scored


def score_retrieval(dataset: str, rows: list[dict]) -> Scored:
    """Recall at 1, 5 and 10 in both directions; captions of one image are one unit of the bootstrap."""
    scored = Scored([f"{row['item']} {row['right']}" for row in rows])
    for direction in ("image_to_text", "text_to_image"):
        queries = [row for row in rows if row["direction"] == direction]
        values = load_metric("retrieval_recall").compute(
            predictions=[row["ranked"] for row in queries], references=[row["right"] for row in queries]
        )
        cut_offs = {name: int(name.split("@")[1]) for name in values}
        hits = np.array(
            [[bool(set(row["ranked"][:k]) & set(row["right"])) for k in cut_offs.values()] for row in queries]
        )  # (N, cut-offs)
        samples = bootstrap(weighted_mean(hits), np.array([row["image"] for row in queries]))
        for column, name in enumerate(cut_offs):
            metric = f"{direction}_{name}"
            if direction == "image_to_text":
                scored.proportion(dataset, metric, values[name], hits[:, column])
                scored.samples[dataset, metric] = samples[:, column]
            else:
                images = len({row["image"] for row in queries})
                scored.resampled(dataset, metric, values[name], len(queries), samples[:, column], units=images)
    return scored
