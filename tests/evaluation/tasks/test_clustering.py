"""Clustering: oracle, constant and seeds; scores and their resampling agree with the metric module."""

import numpy as np
import pytest

from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.scoring.scores import _Contingency, score_clusters
from dcr_hf.evaluation.tasks.clustering import predict_clusters
from dcr_hf.metrics import load_metric
from helpers.by_hand import ByHand, Names, one_hot

LABELS = np.repeat([0, 1, 2], [20, 15, 10])


def data() -> LabeledImages:
    return LabeledImages("shapes", Names(len(LABELS)), "here", "0", LABELS, ["a", "b", "c"], ["{c}"])


def test_oracle_gets_everything():
    """Unit length: rows that differ in length alone are one point."""
    images = np.stack([one_hot(label, 3) * (1 + index) for index, label in enumerate(LABELS)])
    rows = predict_clusters(ByHand(images), data(), "projected", [0, 1])
    scores = score_clusters("shapes", rows).scores
    assert [(row["metric"], row["value"], row["std"]) for row in scores] == [
        ("nmi", pytest.approx(1.0), pytest.approx(0.0)),
        ("acc", 1.0, 0.0),
        ("ari", 1.0, 0.0),
    ]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_constant_encoder_gets_the_largest_class():
    rows = predict_clusters(ByHand(np.ones((len(LABELS), 4))), data(), "projected", [0])
    values = {row["metric"]: row["value"] for row in score_clusters("shapes", rows).scores}
    assert values == {"nmi": pytest.approx(0.0, abs=1e-12), "acc": pytest.approx(20 / 45), "ari": 0.0}


def test_seeds_are_reproducible_and_spread_is_reported():
    images = np.random.default_rng(0).normal(size=(len(LABELS), 8))
    rows = predict_clusters(ByHand(images), data(), "projected", [0, 1, 2])
    assert rows == predict_clusters(ByHand(images), data(), "projected", [0, 1, 2])
    score = score_clusters("shapes", rows).scores[0]
    by_seed = [
        load_metric("clustering").compute(predictions=[row["clusters"][seed] for row in rows], references=LABELS)[
            "nmi"
        ]
        for seed in range(3)
    ]
    assert score["by_seed"] == by_seed and score["value"] == pytest.approx(np.mean(by_seed))
    assert score["std"] == pytest.approx(np.std(by_seed, ddof=1))
    assert score["low"] < score["value"] < score["high"]


def test_resampled_statistic_is_the_metric():
    generator = np.random.default_rng(0)
    clusters = np.where(generator.random(45) < 0.6, LABELS, generator.integers(5, size=45))
    statistic = _Contingency(LABELS, clusters)
    expected = load_metric("clustering").compute(predictions=clusters, references=LABELS)
    assert statistic(np.ones(45)) == pytest.approx([expected[name] for name in ("nmi", "acc", "ari")])
    # Drawing items twice or not at all is the metric of the items so drawn (ACC: under the matching of all items).
    weights = generator.integers(3, size=45)
    drawn = np.repeat(np.arange(45), weights)
    expected = load_metric("clustering").compute(predictions=clusters[drawn], references=LABELS[drawn])
    assert statistic(weights.astype(float))[[0, 2]] == pytest.approx([expected["nmi"], expected["ari"]])
