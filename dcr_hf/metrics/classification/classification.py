"""Classification from ranked classes: acc1, acc5, mean per-class recall."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
`acc1`: share of items whose best class is right. `acc5`: share with the right class among the best five; absent when
fewer than five classes are ranked. `mean_per_class_recall`: recall of each class that occurs, averaged, so that
every class weighs the same.
"""
_INPUTS = """
Args:
    predictions: classes of each item, best first: a list of the same length for all items.
    references: class of each item, an integer.
Returns:
    acc1, acc5 (with five or more ranked classes), mean_per_class_recall, each a float.
Examples:
    >>> metric = evaluate.load("dcr_hf/metrics/classification")
    >>> metric.compute(predictions=[[0, 1], [0, 1], [1, 0]], references=[0, 0, 0])
    {'acc1': 0.6666666666666666, 'mean_per_class_recall': 0.6666666666666666}
"""
_CITATION = "Radford et al., Learning transferable visual models from natural language supervision, ICML 2021."


class Classification(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references):
        ranked, labels = np.asarray(predictions), np.asarray(references)  # (N, k), (N,)
        right = ranked[:, 0] == labels
        scores = {"acc1": float(right.mean())}
        if ranked.shape[1] >= 5:
            scores["acc5"] = float((ranked[:, :5] == labels[:, None]).any(axis=1).mean())
        recalls = [right[labels == label].mean() for label in np.unique(labels)]
        return {**scores, "mean_per_class_recall": float(np.mean(recalls))}
