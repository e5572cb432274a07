"""Linear probe: logistic regression on frozen features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from dcr_hf.evaluation.embedding.embed import Embeddings
from dcr_hf.evaluation.embedding.store import key
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.tasks.ranking import top_k
from dcr_hf.evaluation.tasks.zeroshot import BLOCK, TOP_CLASSES

C_GRID = tuple(10.0**power for power in range(-5, 2))  # scikit-learn's C: the inverse of the L2 penalty's strength
HELD_OUT = 5  # one in HELD_OUT training images of a class is held out to choose C
ITERATIONS = 1000


def predict_probe(embeddings: Embeddings, data: LabeledImages, kind: str, seeds: list[int]) -> list[dict]:
    """One row per test image: its label, the likeliest classes, best first, and the chosen C.

    Features are standardised by the training split's mean and spread. C is chosen on held-out training images, then
    the regression is fitted on all of them; no test label is used. Nothing is random: `seeds` are unused.
    """
    train = data.train_count
    labels = data.labels[:train]
    protocol = f"{kind}-{key(grid=C_GRID, held_out=HELD_OUT, iterations=ITERATIONS, kept=TOP_CLASSES)}"

    def standardised() -> np.ndarray:
        images = embeddings.images(kind)
        return StandardScaler().fit(images[:train]).transform(images)

    with tqdm(total=len(C_GRID) + 1, desc=f"linear probe: {data.name}", unit=" fits", leave=False) as bar:
        chosen = embeddings.remember(f"probe-C-{protocol}", lambda: choose_c(standardised()[:train], labels, bar))
        ranked = embeddings.remember(f"probe-{protocol}", lambda: _rank(standardised(), labels, chosen.item()))
    return [
        {"item": data.images.name(train + index), "label": label, "ranked": best, "C": chosen.item()}
        for index, (label, best) in enumerate(zip(data.labels[train:].tolist(), ranked.tolist(), strict=True))
    ]


def choose_c(features: np.ndarray, labels: np.ndarray, bar: tqdm) -> np.ndarray:
    """The C of C_GRID with the highest accuracy on held-out training images; ties go to the lowest log loss.

    Args:
        features: (N, D), standardised training features.
        labels: (N,)
        bar: advanced by one per fit.

    Returns:
        (), float64.
    """
    held = hold_out(labels)
    seen, unseen = features[~held], features[held]
    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    scores = {}
    for c in C_GRID:  # from the strongest penalty to the weakest: each fit starts where the one before ended
        model.set_params(C=c).fit(seen, labels[~held])
        probabilities = model.predict_proba(unseen)
        right = model.classes_[probabilities.argmax(axis=1)] == labels[held]
        scores[c] = (right.mean(), -log_loss(labels[held], probabilities, labels=model.classes_))
        bar.update()
    return np.array(max(scores, key=scores.__getitem__))


def hold_out(labels: np.ndarray) -> np.ndarray:
    """(N,) booleans: one in HELD_OUT of each class, at least one; none of a class with a single image. The same in
    every run."""
    generator = np.random.default_rng(0)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held[members[: max(1, len(members) // HELD_OUT)]] = True
    return held


def _rank(features: np.ndarray, labels: np.ndarray, c: float) -> np.ndarray:
    """The likeliest classes of the rows after the labelled ones, best first, (M, k); fitted on the labelled rows."""
    model = LogisticRegression(C=c, max_iter=ITERATIONS).fit(features[: len(labels)], labels)
    k, ranked = min(TOP_CLASSES, len(model.classes_)), []
    for start in range(len(labels), len(features), BLOCK):
        scores = model.decision_function(features[start : start + BLOCK])
        if len(model.classes_) == 2:  # scikit-learn scores the second class alone
            scores = np.stack([-scores, scores], axis=1)
        ranked.append(model.classes_[top_k(scores, k)])
    return np.concatenate(ranked)
