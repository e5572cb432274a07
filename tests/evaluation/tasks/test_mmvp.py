"""MMVP-VLM: the protocol by hand, ties and chance included."""

import numpy as np
import pytest

from dcr_hf.evaluation.readers.image_sets import Pair, PairedImages
from dcr_hf.evaluation.readers.mmvp import CATEGORIES, read_mmvp
from dcr_hf.evaluation.scoring.scores import score_pairs
from dcr_hf.evaluation.tasks.mmvp import predict_pairs
from helpers.by_hand import ByHand, Names, one_hot
from helpers.evaluation_layouts import write_mmvp


def one_pair(truth=(0, 1)) -> PairedImages:
    return PairedImages("mmvp", Names(2), "here", "0", [Pair("Texts", (1, 2), ("one", "two"), truth)])


def test_probabilities_by_hand():
    images = np.array([[1.0, 0.0], [0.6, 0.8]]) * [[3.0], [5.0]]  # lengths must not matter
    texts = {"a photo of one": one_hot(0, 2), "a photo of two": one_hot(1, 2)}
    (row,) = predict_pairs(ByHand(images, texts, logit_scale=2.0), one_pair(), "projected", [])
    first = [1 / (1 + np.exp(2 * (0.6 - 1))), 1 / (1 + np.exp(2 * (0.8 - 0)))]
    assert row["probabilities"] == [pytest.approx([p, 1 - p], abs=1e-6) for p in first]
    assert row["predictions"] == [0, 1]
    assert row["correct"]


def test_both_statements_must_be_right():
    texts = {"a photo of one": one_hot(0, 2), "a photo of two": one_hot(0, 2)}  # both choose the first image
    (row,) = predict_pairs(ByHand(np.eye(2), texts), one_pair(), "projected", [])
    assert row["predictions"] == [0, 0] and not row["correct"]


def test_a_tie_chooses_the_second_image():
    texts = {"a photo of one": one_hot(0, 2), "a photo of two": one_hot(1, 2)}
    (row,) = predict_pairs(ByHand(np.ones((2, 2)), texts), one_pair(), "projected", [])
    assert row["probabilities"] == [[0.5, 0.5], [0.5, 0.5]]
    assert row["predictions"] == [1, 1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmvp(root / "MMVP_VLM")
    return read_mmvp("MMVP_VLM", None, root)


def texts_of(data, vector) -> dict:
    return {
        f"a photo of {text}": vector(2 * index + truth)
        for index, pair in enumerate(data.pairs)
        for text, truth in zip(pair.statements, pair.truth, strict=True)
    }


def test_oracle_gets_everything(data):
    rows = predict_pairs(ByHand(np.eye(270), texts_of(data, lambda i: one_hot(i, 270))), data, "projected", [])
    scores = {row["dataset"]: row for row in score_pairs("MMVP_VLM", rows).scores}
    assert list(scores) == ["all", *CATEGORIES]
    assert scores["all"]["value"] == 1.0 and scores["all"]["count"] == scores["all"]["n"] == 135
    assert all(scores[name]["value"] == 1.0 and scores[name]["n"] == 15 for name in CATEGORIES)


def test_constant_encoder_gets_nothing(data):
    """Documented: ties choose the second image, so one of two statements is wrong in every pair."""
    rows = predict_pairs(ByHand(np.ones((270, 4)), texts_of(data, lambda i: one_hot(i % 4, 4))), data, "projected", [])
    assert score_pairs("MMVP_VLM", rows).scores[0]["value"] == 0.0


def test_guessing_gets_a_quarter(data):
    generator = np.random.default_rng(0)
    values = []
    for _ in range(20):
        texts = texts_of(data, lambda i: generator.normal(size=64))
        rows = predict_pairs(ByHand(generator.normal(size=(270, 64)), texts), data, "projected", [])
        values.append(score_pairs("MMVP_VLM", rows).scores[0]["value"])
    assert np.mean(values) == pytest.approx(0.25, abs=0.03)  # 2,700 pairs: standard error 0.008


def test_mean_of_nine_categories_and_its_interval(data):
    rows = predict_pairs(ByHand(np.eye(270), texts_of(data, lambda i: one_hot(i, 270))), data, "projected", [])
    for row in rows[26:]:
        row["predictions"] = [1 - choice for choice in row["references"]]
        row["correct"] = False
    scored = score_pairs("MMVP_VLM", rows)
    total = scored.scores[0]
    assert total["value"] == pytest.approx(26 / 135) and total["count"] == 26
    assert (total["low"], total["high"]) == (pytest.approx(0.135, abs=1e-3), pytest.approx(0.267, abs=1e-3))
    assert [row["count"] for row in scored.scores[1:]] == [15, 11, 0, 0, 0, 0, 0, 0, 0]
