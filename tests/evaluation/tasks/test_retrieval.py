"""Retrieval both ways: several captions per image, oracle, constant, and CLIP_benchmark's definition restated."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dcr_hf.evaluation.readers.image_sets import CaptionedImages
from dcr_hf.evaluation.scoring.scores import score_retrieval
from dcr_hf.evaluation.tasks.retrieval import predict_retrieval
from helpers.by_hand import ByHand, Names, one_hot

COUNT = 12
CAPTIONS = [[f"{image} {each}" for each in range(2 + image % 3)] for image in range(COUNT)]
TEXTS = [text for captions in CAPTIONS for text in captions]


def data() -> CaptionedImages:
    return CaptionedImages("photos", Names(COUNT), "here", "0", CAPTIONS)


def values(embeddings) -> dict:
    rows = predict_retrieval(embeddings, data(), "projected", [])
    return {row["metric"]: row["value"] for row in score_retrieval("photos", rows).scores}


def test_oracle_gets_everything():
    texts = {text: one_hot(int(text.split()[0]), COUNT) for text in TEXTS}
    assert set(values(ByHand(np.eye(COUNT), texts)).values()) == {1.0}


def test_constant_encoder_retrieves_the_first():
    """Image 0 has 2 captions, 1 has 3, 2 has 4, 3 has 2: the first ten texts are of four images."""
    found = values(ByHand(np.ones((COUNT, 3)), {text: np.ones(3) for text in TEXTS}))
    assert found["image_to_text_recall@1"] == pytest.approx(1 / COUNT)
    assert found["image_to_text_recall@5"] == pytest.approx(2 / COUNT)
    assert found["image_to_text_recall@10"] == pytest.approx(4 / COUNT)
    assert found["text_to_image_recall@1"] == pytest.approx(2 / len(TEXTS))
    assert found["text_to_image_recall@5"] == pytest.approx((2 + 3 + 4 + 2 + 3) / len(TEXTS))


def test_agrees_with_clip_benchmark_s_definition():
    torch.manual_seed(0)
    images, texts = torch.randn(COUNT, 8), normalize(torch.randn(len(TEXTS), 8), dim=-1)
    found = values(ByHand(images.numpy(), dict(zip(TEXTS, texts.numpy(), strict=True))))
    scores = texts @ normalize(images, dim=-1).T  # (texts, images)
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[range(len(TEXTS)), [int(text.split()[0]) for text in TEXTS]] = True
    for name, matrix, right in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        for k in (1, 5, 10):
            hits = right.gather(1, matrix.topk(k).indices).any(dim=1)
            assert found[f"{name}_recall@{k}"] == pytest.approx(hits.float().mean().item())


def test_captions_of_an_image_are_one_observation():
    rows = predict_retrieval(
        ByHand(np.eye(COUNT), {text: one_hot(int(text.split()[0]) % 6, COUNT) for text in TEXTS}), data(), "", []
    )
    row = next(row for row in score_retrieval("photos", rows).scores if row["metric"] == "text_to_image_recall@1")
    independent = 1.96 * np.sqrt(0.25 / len(TEXTS))
    assert (row["high"] - row["low"]) / 2 > 1.3 * independent
