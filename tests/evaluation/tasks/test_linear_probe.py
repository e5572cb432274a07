"""Linear probe: separable, constant and hand-made features; what is learned from which images."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dcr_hf.evaluation.embedding.store import remember
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.scoring.scores import score_probe
from dcr_hf.evaluation.tasks.linear_probe import C_GRID, hold_out, predict_probe
from helpers.by_hand import ByHand, Names, one_hot


def data(train, test) -> LabeledImages:
    labels = np.concatenate([train, test])
    names = [f"c{index}" for index in range(labels.max() + 1)]
    return LabeledImages("things", Names(len(labels)), "here", "0", labels, names, train_count=len(train))


def probe(images, train, test, embeddings=ByHand) -> list[dict]:
    return predict_probe(embeddings(images), data(train, test), "projected", [])


def values(rows) -> dict:
    return {row["metric"]: row["value"] for row in score_probe("things", rows).scores}


def noisy(labels, classes, spread, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    means = np.stack([one_hot(label, classes) for label in labels])
    return means + spread * generator.normal(size=means.shape)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_separable_features_get_everything(classes):
    """A class of two images among large ones too; and features of very different sizes."""
    train = np.repeat(np.arange(classes), [40] * (classes - 1) + [2])
    test = np.repeat(np.arange(classes), 5)
    labels = np.concatenate([train, test])
    images = noisy(labels, classes, 0.02) * 10.0 ** np.arange(classes) + 7
    found = values(probe(images, train, test))
    expected = {"acc1": 1.0, "mean_per_class_recall": 1.0}
    assert found == (expected | {"acc5": 1.0} if classes > 5 else expected)


def test_constant_features_get_the_share_of_the_most_frequent_training_class():
    train, test = np.repeat([0, 1, 2], [10, 30, 20]), np.repeat([0, 1, 2], [5, 3, 2])
    rows = probe(np.full((70, 4), 0.1), train, test)
    assert all(row["ranked"] == [1, 2, 0] for row in rows)  # by their shares
    assert values(rows) == {"acc1": 0.3, "mean_per_class_recall": pytest.approx(1 / 3)}


def test_features_without_information_get_about_chance():
    generator = np.random.default_rng(0)
    train, test = generator.integers(4, size=200), generator.integers(4, size=400)
    assert values(probe(generator.normal(size=(600, 100)), train, test))["acc1"] == pytest.approx(0.25, abs=0.08)


def test_rows_are_the_test_images_with_the_plain_regressions_order():
    train, test = np.arange(90) % 6, np.arange(30) % 6
    images = noisy(np.concatenate([train, test]), 6, 0.6).astype(np.float32)
    rows = probe(images, train, test)
    assert [(row["item"], row["label"]) for row in rows] == [(f"image-{90 + i}", i % 6) for i in range(30)]
    (c,) = {row["C"] for row in rows}
    assert c in C_GRID
    mean, spread = images[:90].mean(axis=0), images[:90].std(axis=0)
    plain = LogisticRegression(C=c, max_iter=1000).fit((images[:90] - mean) / spread, train)
    order = np.argsort(-plain.predict_proba((images[90:] - mean) / spread), axis=1)[:, :5]
    assert [row["ranked"] for row in rows] == order.tolist()
    assert {row["C"] for row in score_probe("things", rows).scores} == {c}


def test_class_numbers_may_have_gaps():
    train, test = np.repeat([1, 4, 7], 10), np.array([7, 1, 4])
    rows = probe(noisy(np.concatenate([train, test]), 8, 0.01), train, test)
    assert [row["ranked"][0] for row in rows] == [7, 1, 4] and sorted(rows[0]["ranked"]) == [1, 4, 7]


def test_test_labels_and_test_features_choose_nothing():
    train, test = np.arange(120) % 4, np.arange(40) % 4
    images = noisy(np.concatenate([train, test]), 4, 0.5)
    rows = probe(images, train, test)
    other = probe(images, train, test[::-1].copy())
    assert [(row["ranked"], row["C"]) for row in rows] == [(row["ranked"], row["C"]) for row in other]
    # An image is standardised by the training split alone: what else is in the test split does not matter to it.
    images[121:] *= 1000
    assert probe(images, train, test)[0] == rows[0]


def test_c_follows_the_training_images():
    """Few noisy dimensions of use among many: the strong penalty; clean ones: a weak one."""
    train = np.arange(60) % 2
    generator = np.random.default_rng(0)
    useless = np.concatenate([noisy(train, 2, 1.0), generator.normal(size=(60, 200))], axis=1)
    clean = noisy(train, 2, 0.01)
    strong, weak = (probe(np.concatenate([x, x]), train, train)[0]["C"] for x in (useless, clean))
    assert strong < weak == C_GRID[-1]


def test_held_out_is_a_fifth_of_each_class():
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 3, 5], [50, 10, 4, 2, 1]))
    held = hold_out(labels)
    assert np.bincount(labels[held], minlength=6).tolist() == [10, 2, 1, 1, 0, 0]
    assert held.tolist() == hold_out(labels).tolist()


def test_fits_are_remembered(tmp_path, monkeypatch):
    class Kept(ByHand):
        def remember(self, name, compute):
            return remember(tmp_path / f"{name}.npy", compute)

    train, test = np.arange(40) % 4, np.arange(20) % 4
    images = noisy(np.concatenate([train, test]), 4, 0.3)
    rows = probe(images, train, test, Kept)
    monkeypatch.setattr(
        "dcr_hf.evaluation.tasks.linear_probe.LogisticRegression", lambda **_: pytest.fail("fitted again")
    )
    assert probe(images, train, test, Kept) == rows
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        predict_probe(Kept(images), data(train, test), "mean_patch", [])  # another feature is another probe
