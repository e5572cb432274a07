"""Clustering: k-means on unit-length features, one run per seed."""

from functools import partial

import numpy as np
from sklearn.cluster import KMeans
from tqdm import tqdm

from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.tasks.ranking import unit

STARTS = 10  # k-means++ starts per seed; the one with the lowest inertia wins


def predict_clusters(embeddings: Embeddings, data: LabeledImages, kind: str, seeds: list[int]) -> list[dict]:
    """One row per image: its label and its cluster under each seed; k = the number of classes among the labels.

    Equal features fall into one cluster: NMI and ARI 0, ACC the largest class's share.
    """
    classes = len(np.unique(data.labels))

    def fit(seed: int) -> np.ndarray:
        features = unit(embeddings.images(kind))
        return KMeans(n_clusters=classes, n_init=STARTS, random_state=seed).fit_predict(features).astype(np.int32)

    columns = [
        embeddings.remember(f"kmeans-{kind}-{classes}-{STARTS}-{seed}", partial(fit, seed))
        for seed in tqdm(seeds, desc=f"k-means: {data.name}", unit=" seeds", leave=False)
    ]
    clusters = np.stack(columns, axis=1)  # (N, seeds)
    return [
        {"item": data.images.name(index), "label": label, "clusters": assigned}
        for index, (label, assigned) in enumerate(zip(data.labels.tolist(), clusters.tolist(), strict=True))
    ]
