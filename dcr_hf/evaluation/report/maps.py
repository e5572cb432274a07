"""The report's inputs besides predictions: a t-SNE map of one set, and thumbnails of MMVP's images."""

import json
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.readers.image_sets import Images, LabeledImages
from dcr_hf.evaluation.report.cards import small_copy
from dcr_hf.evaluation.scoring.results import slug, write_text, writes_to
from dcr_hf.evaluation.tasks.ranking import unit

POINTS = 1500


def easiest_to_see(sets: list[LabeledImages], clustered: set[str]) -> LabeledImages | None:
    """The set for the map: the one with the fewest classes, since a map has few colours. Clustered sets (by title)
    come first, since the map shows what NMI measures; ties go to a set without training images. None if there is no
    labelled set."""

    def order(data: LabeledImages) -> tuple[bool, int, bool]:
        return data.title not in clustered, len(np.unique(data.labels)), data.train_count > 0

    return min(sets, key=order, default=None)


def write_map(path: Path, embeddings: Embeddings, data: LabeledImages, kind: str) -> None:
    """Write the t-SNE of up to POINTS images, the same for every encoder, as JSON: points, labels, class_names."""
    count = len(data.labels)
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:POINTS])

    def fit() -> np.ndarray:
        features = unit(embeddings.images(kind)[chosen])
        reduced = PCA(min(50, *features.shape), random_state=0).fit_transform(features)
        return TSNE(perplexity=min(30.0, (len(chosen) - 1) / 3), init="pca", random_state=0).fit_transform(reduced)

    points = embeddings.remember(f"tsne-{kind}-{len(chosen)}", fit)
    names = list(data.class_names)
    content = {"points": points.round(3).tolist(), "labels": data.labels[chosen].tolist(), "class_names": names}
    write_text(path, json.dumps(content))


def write_thumbnails(folder: Path, images: Images) -> None:
    """Write a small JPEG copy of every image, named by `thumbnail_name`."""
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(images)):
        path = folder / thumbnail_name(images.name(index))
        if not path.is_file():
            content = small_copy(images, index)
            with writes_to(folder):
                path.write_bytes(content)


def thumbnail_name(image: str) -> str:
    return f"{slug(image)}.jpg"
