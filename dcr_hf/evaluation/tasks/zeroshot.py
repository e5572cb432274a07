"""Zero-shot classification as CLIP_benchmark computes it: the class with the nearest averaged prompt."""

import hashlib

import numpy as np

from dcr_hf.errors import UserError
from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.readers.class_folders import WORDNET_ID
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.tasks.ranking import top_k, unit

TOP_CLASSES = 5  # predicted classes per image
BLOCK = 4096  # images scored at once, which bounds memory


def class_embeddings(embeddings: Embeddings, class_names: list[str], templates: list[str]) -> np.ndarray:
    """(C, D): each class's unit-length prompt embeddings averaged over the templates, at unit length again."""
    rows = []
    for name in class_names:
        prompts = embeddings.texts([template.replace("{c}", name) for template in templates])
        rows.append(prompts.mean(axis=0))
    return unit(np.stack(rows))


def check_prompts(data: LabeledImages) -> None:
    """Raise a UserError for classes whose names would be no words."""
    ids = [name for name in data.class_names if WORDNET_ID.fullmatch(name)]
    if ids:
        raise UserError(
            f"data set {data.name!r}: its classes are called {ids[0]} and the like, which are no words for a prompt. "
            f"Put a classnames.txt into {data.source}, one name a line in the order of the folders."
        )


def predict_classes(embeddings: Embeddings, data: LabeledImages, kind: str, seeds: list[int]) -> list[dict]:
    """One row per image: its label and the likeliest classes, best first (all if there are fewer than five).

    Ties go to the lower class, so a constant encoder always predicts class 0.
    """
    prompts = hashlib.sha256("\n".join([*data.class_names, "", *data.templates]).encode()).hexdigest()[:16]
    classes = embeddings.remember_texts(
        f"classes-{prompts}", lambda: class_embeddings(embeddings, list(data.class_names), list(data.templates))
    )
    images, k = embeddings.images("projected"), min(TOP_CLASSES, len(classes))
    ranked = [top_k(unit(images[start : start + BLOCK]) @ classes.T, k) for start in range(0, len(images), BLOCK)]
    return [
        {"item": data.images.name(index), "label": label, "ranked": best}
        for index, (label, best) in enumerate(zip(data.labels.tolist(), np.concatenate(ranked).tolist(), strict=True))
    ]
