"""Retrieval between images and their captions, both ways, as CLIP-like papers count it: any right answer is a hit."""

import hashlib

import numpy as np

from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.readers.image_sets import CaptionedImages
from dcr_hf.evaluation.tasks.ranking import top_k, unit

TOP_ANSWERS = 10
BLOCK = 1024


def predict_retrieval(embeddings: Embeddings, data: CaptionedImages, kind: str, seeds: list[int]) -> list[dict]:
    """One row per query: the retrieved answers, best first, and the right ones. Captions are numbered in order.

    Ties go to the lower number.
    """
    texts = [caption for captions in data.captions for caption in captions]
    counts = [len(captions) for captions in data.captions]
    owners = np.repeat(np.arange(len(counts)), counts)  # (texts,): the image of each text
    first_text = np.concatenate([[0], np.cumsum(counts)])
    name = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    text_embeddings = embeddings.remember_texts(f"captions-{name}", lambda: embeddings.texts(texts))
    image_embeddings = unit(embeddings.images("projected"))
    rows = []
    for index, best in enumerate(_nearest(image_embeddings, text_embeddings)):
        right = list(range(first_text[index], first_text[index + 1]))
        rows.append(_row("image_to_text", data.images.name(index), index, best, right))
    for text, best in enumerate(_nearest(text_embeddings, image_embeddings)):
        image = int(owners[text])
        rows.append(
            _row("text_to_image", f"{data.images.name(image)}#{text - first_text[image]}", image, best, [image])
        )
    return rows


def _nearest(queries: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    k = min(TOP_ANSWERS, len(targets))
    blocks = [top_k(queries[start : start + BLOCK] @ targets.T, k) for start in range(0, len(queries), BLOCK)]
    return np.concatenate(blocks).tolist()


def _row(direction: str, item: str, image: int, ranked: list[int], right: list[int]) -> dict:
    return {"direction": direction, "item": item, "image": image, "ranked": ranked, "right": right}
