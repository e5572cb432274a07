"""The `evaluate` modules: values by hand, and that they load by path from anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from dcr_hf.metrics import METRICS, load_metric

ROOT = Path(__file__).parents[2]


def test_clustering_by_hand():
    # Classes 0 0 0 1 1 1, clusters a a b b b b. Matching a-0, b-1: 5 of 6.
    scores = load_metric("clustering").compute(predictions=[7, 7, 3, 3, 3, 3], references=[0, 0, 0, 1, 1, 1])
    assert scores["acc"] == pytest.approx(5 / 6)
    cells, rows, columns = np.array([2, 1, 3]) / 6, np.array([2, 4]) / 6, np.array([3, 3]) / 6

    def entropy(shares):
        return -np.sum(shares * np.log(shares))

    mutual = entropy(rows) + entropy(columns) - entropy(cells)
    assert scores["nmi"] == pytest.approx(mutual / ((entropy(rows) + entropy(columns)) / 2))
    # Pairs: in one cell 1 + 0 + 3 = 4; in one cluster 1 + 6 = 7; in one class 3 + 3 = 6; of 15.
    assert scores["ari"] == pytest.approx((4 - 7 * 6 / 15) / ((7 + 6) / 2 - 7 * 6 / 15))


def test_clustering_matches_each_class_with_one_cluster():
    # Two clusters hold class 0 alone; only one of them may claim it.
    scores = load_metric("clustering").compute(predictions=[0, 0, 1, 1, 2, 2], references=[0, 0, 0, 0, 1, 1])
    assert scores["acc"] == pytest.approx(4 / 6)


def test_clustering_of_one_cluster():
    scores = load_metric("clustering").compute(predictions=[0] * 4, references=[0, 0, 0, 1])
    assert scores == {"nmi": 0.0, "acc": 0.75, "ari": 0.0}


def test_clustering_refuses_negative_numbers():
    with pytest.raises(ValueError, match="from 0"):
        load_metric("clustering").compute(predictions=[-1, 0], references=[0, 1])


def test_paired_accuracy_wants_both():
    metric = load_metric("paired_accuracy")
    scores = metric.compute(predictions=[0, 1, 0, 0, 1, 1], references=[0, 1, 0, 1, 0, 0])
    assert scores == {"pair_accuracy": pytest.approx(1 / 3), "correct": 1, "pairs": 3}
    # With categories of unequal size the mean of categories is not the share of pairs.
    scores = metric.compute(predictions=[0, 1, 0, 0, 1, 1], references=[0, 1, 0, 1, 0, 0], categories=["a", "b", "b"])
    assert scores["by_category"] == {"a": 1.0, "b": 0.0}
    assert scores["pair_accuracy"] == 0.5
    with pytest.raises(ValueError, match="odd"):
        metric.compute(predictions=[0], references=[0])
    with pytest.raises(ValueError, match="1 categories for 2 pairs"):
        metric.compute(predictions=[0] * 4, references=[0] * 4, categories=["a"])


def test_classification_by_hand():
    ranked = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 1, 2, 3, 4], [1, 5, 2, 3, 4]]
    labels = [0, 0, 5, 9]
    scores = load_metric("classification").compute(predictions=ranked, references=labels)
    assert scores["acc1"] == 0.5
    assert scores["acc5"] == 0.75
    # Recalls: class 0 is 1/2, class 5 is 1, class 9 is 0.
    assert scores["mean_per_class_recall"] == pytest.approx(0.5)


def test_classification_agrees_with_scikit_learn_on_recall():
    generator = np.random.default_rng(0)
    labels, ranked = generator.integers(5, size=200), generator.permuted(np.tile(np.arange(5), (200, 1)), axis=1)
    scores = load_metric("classification").compute(predictions=ranked, references=labels)
    assert scores["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, ranked[:, 0]))
    assert scores["acc5"] == 1.0


def test_classification_has_no_acc5_under_five_classes():
    assert "acc5" not in load_metric("classification").compute(predictions=[[0, 1, 2, 3]], references=[0])


def test_retrieval_counts_any_right_answer_once():
    scores = load_metric("retrieval_recall").compute(
        predictions=[[3, 4, 5], [0, 1, 2], [9, 8, 7]], references=[[4, 5], [0, 1], [1]], ks=[1, 2, 10]
    )
    assert scores == {
        "recall@1": pytest.approx(1 / 3),
        "recall@2": pytest.approx(2 / 3),
        "recall@10": pytest.approx(2 / 3),
    }


def test_loads_by_path_as_documented():
    """In another process and with recipes/, which holds an evaluate.py, first on the path as when a recipe runs."""
    code = f"""
from dcr_hf.metrics import load_metric
for name in {METRICS}:
    print(load_metric(name).info.description.strip()[:20])
import evaluate
print(evaluate.load("dcr_hf/metrics/clustering").compute(predictions=[1, 1, 0, 0], references=[0, 0, 1, 1]))
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'recipes'}:{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    *descriptions, scores = done.stdout.splitlines()
    assert len(set(descriptions)) == len(METRICS) == 4
    assert scores == "{'nmi': 1.0, 'acc': 1.0, 'ari': 1.0}"


def test_unknown_metric_lists_the_known():
    with pytest.raises(ValueError, match="classification, clustering, paired_accuracy, retrieval_recall"):
        load_metric("accuracy")
