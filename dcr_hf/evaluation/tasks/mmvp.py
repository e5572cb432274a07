"""MMVP-VLM: which of two images that CLIP finds alike does a statement describe?"""

import hashlib

import numpy as np

from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.readers.image_sets import PairedImages
from dcr_hf.evaluation.tasks.ranking import unit

PROMPT = "a photo of {}"


def predict_pairs(embeddings: Embeddings, data: PairedImages, kind: str, seeds: list[int]) -> list[dict]:
    """One row per pair, with both texts' probabilities over the two images.

    A text chooses the first image when its probability is above 0.5, so a tie chooses the second: an encoder that
    sees no difference gets every pair wrong, one that guesses a quarter of them right.
    """
    images = unit(embeddings.images("projected")).reshape(len(data.pairs), 2, -1)  # (P, image, D)
    prompts = [PROMPT.format(text) for pair in data.pairs for text in pair.statements]
    name = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    texts = embeddings.remember_texts(f"statements-{name}", lambda: embeddings.texts(prompts))
    texts = texts.reshape(len(data.pairs), 2, -1)  # (P, text, D)
    logits = embeddings.logit_scale * np.einsum("ptd,pid->pti", texts, images).astype(np.float64)
    # The softmax over two images, as the logistic function of their difference.
    first = 1 / (1 + np.exp(logits[..., 1] - logits[..., 0]))  # (P, text): probability of the first image
    rows = []
    for index, (pair, probabilities) in enumerate(zip(data.pairs, first.tolist(), strict=True)):
        chosen = [0 if probability > 0.5 else 1 for probability in probabilities]
        rows.append(
            {
                "item": f"{pair.question_ids[0]}-{pair.question_ids[1]}",
                "category": pair.category,
                "statements": list(pair.statements),
                "images": [data.images.name(2 * index), data.images.name(2 * index + 1)],
                "probabilities": [[probability, 1 - probability] for probability in probabilities],
                "predictions": chosen,
                "references": list(pair.truth),
                "correct": chosen == list(pair.truth),
            }
        )
    return rows
