"""Zero-shot: CLIP_benchmark's definition, restated plainly; oracle, constant, ties."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.scoring.scores import score_classes
from dcr_hf.evaluation.tasks.ranking import top_k
from dcr_hf.evaluation.tasks.zeroshot import class_embeddings, predict_classes
from helpers.by_hand import ByHand, Names, one_hot

CLASSES = [f"c{index}" for index in range(6)]
TEMPLATES = ["a {c}.", "no {c}?", "{c}"]
LABELS = np.array([0, 1, 2, 3, 4, 5] * 4)


def data(labels=LABELS, classes=CLASSES) -> LabeledImages:
    return LabeledImages("things", Names(len(labels)), "here", "0", labels, classes, TEMPLATES)


def texts_of(vector, classes=CLASSES) -> dict:
    return {template.replace("{c}", name): vector(i) for i, name in enumerate(classes) for template in TEMPLATES}


def values(rows) -> dict:
    return {row["metric"]: row["value"] for row in score_classes("things", rows).scores}


def test_oracle_gets_everything():
    images = np.stack([one_hot(label, 6) for label in LABELS])
    rows = predict_classes(ByHand(images, texts_of(lambda i: one_hot(i, 6))), data(), "projected", [])
    assert values(rows) == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}


def test_constant_encoder_says_class_zero():
    rows = predict_classes(ByHand(np.ones((24, 6)), texts_of(lambda i: one_hot(0, 6))), data(), "projected", [])
    assert all(row["ranked"] == [0, 1, 2, 3, 4] for row in rows)
    assert values(rows) == {"acc1": 1 / 6, "acc5": 5 / 6, "mean_per_class_recall": pytest.approx(1 / 6)}


def test_agrees_with_clip_benchmark_s_definition():
    generator = torch.Generator().manual_seed(0)
    prompts = {text: torch.randn(16, generator=generator) for text in texts_of(lambda i: None)}
    prompts = {text: normalize(vector, dim=0) for text, vector in prompts.items()}
    images = torch.randn(24, 16, generator=generator)
    rows = predict_classes(
        ByHand(images.numpy(), {text: vector.numpy() for text, vector in prompts.items()}), data(), "projected", []
    )
    columns = []
    for name in CLASSES:
        mean = torch.stack([prompts[template.format(c=name)] for template in TEMPLATES]).mean(0)
        columns.append(mean / mean.norm())
    logits = 100 * normalize(images, dim=-1) @ torch.stack(columns, dim=1)
    assert [row["ranked"] for row in rows] == logits.topk(5).indices.tolist()


def test_class_embedding_averages_unit_vectors():
    texts = {"a c0.": one_hot(0, 2), "no c0?": one_hot(0, 2), "c0": one_hot(1, 2)}
    (row,) = class_embeddings(ByHand(np.zeros((1, 2)), texts), ["c0"], TEMPLATES)
    assert row == pytest.approx(np.array([2, 1]) / np.sqrt(5))


def test_no_acc5_under_five_classes():
    labels, classes = np.array([0, 1, 2, 3]), CLASSES[:4]
    images, texts = np.eye(4), texts_of(lambda i: one_hot(i, 4), classes)
    rows = predict_classes(ByHand(images, texts), data(labels, classes), "projected", [])
    assert values(rows) == {"acc1": 1.0, "mean_per_class_recall": 1.0}


def test_unbalanced_classes_weigh_the_same_in_recall():
    labels = np.array([0] * 9 + [1])
    texts = texts_of(lambda i: one_hot(i, 6))
    rows = predict_classes(ByHand(np.tile(one_hot(0, 6), (10, 1)), texts), data(labels), "projected", [])
    assert values(rows)["acc1"] == 0.9 and values(rows)["mean_per_class_recall"] == 0.5


def test_top_k_breaks_ties_by_index():
    scores = np.array([[0.0, 1.0, 1.0, 0.5], [2.0, 2.0, 2.0, 2.0], [0.1, 0.2, 0.3, 0.4]])
    assert top_k(scores, 2).tolist() == [[1, 2], [0, 1], [3, 2]]
    assert top_k(scores, 4).tolist() == [[1, 2, 3, 0], [0, 1, 2, 3], [3, 2, 1, 0]]
    generator = np.random.default_rng(0)
    scores = generator.integers(6, size=(50, 20)).astype(np.float32)
    assert top_k(scores, 7).tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :7].tolist()
