"""Accuracy over pairs of statements: a pair counts when both are answered right."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Items come in twos, (0, 1), (2, 3), ...; a pair is right when both its items are. Guessing each item between two
answers gets a quarter of the pairs. With `categories`, one per pair, the score is the mean of the categories'
accuracies, which is the plain accuracy where categories are equally large.
"""
_INPUTS = """
Args:
    predictions: answer to each item, an integer.
    references: right answer to each item, an integer.
    categories: optional, a name for each pair.
Returns:
    pair_accuracy (with categories: their mean), correct and pairs (counts); with categories also by_category, a
    dictionary of accuracies.
Examples:
    >>> metric = evaluate.load("dcr_hf/metrics/paired_accuracy")
    >>> metric.compute(predictions=[0, 1, 0, 0], references=[0, 1, 0, 1])
    {'pair_accuracy': 0.5, 'correct': 1, 'pairs': 2}
"""
_CITATION = "Tong et al., Eyes wide shut? Exploring the visual shortcomings of multimodal LLMs, CVPR 2024."


class PairedAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, categories=None):
        if len(references) % 2:
            raise ValueError(f"{len(references)} items do not make pairs: an odd number")
        right = (np.asarray(predictions) == np.asarray(references)).reshape(-1, 2).all(axis=1)  # (pairs,)
        scores = {"pair_accuracy": float(right.mean()), "correct": int(right.sum()), "pairs": len(right)}
        if categories is None:
            return scores
        if len(categories) != len(right):
            raise ValueError(f"{len(categories)} categories for {len(right)} pairs: give one per pair")
        names = np.asarray(categories)
        scores["by_category"] = {name: float(right[names == name].mean()) for name in dict.fromkeys(categories)}
        scores["pair_accuracy"] = float(np.mean(list(scores["by_category"].values())))
        return scores
