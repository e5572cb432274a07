"""Agreement of a clustering with class labels: NMI, ACC, ARI."""

import datasets
import evaluate
import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

_DESCRIPTION = """
Three measures of how well clusters match classes, none of which depends on how clusters are numbered:
`nmi`, mutual information over the arithmetic mean of the two entropies, in [0, 1];
`acc`, accuracy under the best one-to-one matching of clusters and classes (Hungarian algorithm), in [0, 1];
`ari`, the Rand index adjusted for chance: 1 is perfect, 0 is chance, negative is worse than chance.
"""
_INPUTS = """
Args:
    predictions: cluster of each item, integers from 0.
    references: class of each item, integers from 0.
Returns:
    nmi, acc, ari, each a float.
Examples:
    >>> metric = evaluate.load("dcr_hf/metrics/clustering")
    >>> metric.compute(predictions=[1, 1, 0, 0], references=[0, 0, 1, 1])
    {'nmi': 1.0, 'acc': 1.0, 'ari': 1.0}
"""
_CITATION = "Hubert and Arabie, Comparing partitions, 1985; Kuhn, The Hungarian method, 1955."


class Clustering(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if min(predictions.min(), references.min()) < 0:
            raise ValueError("clusters and classes are integers from 0, found a negative one")
        table = np.zeros((predictions.max() + 1, references.max() + 1), dtype=np.int64)  # (clusters, classes)
        np.add.at(table, (predictions, references), 1)
        matched = table[linear_sum_assignment(table, maximize=True)].sum()
        return {
            "nmi": float(normalized_mutual_info_score(references, predictions, average_method="arithmetic")),
            "acc": float(matched / len(references)),
            "ari": float(adjusted_rand_score(references, predictions)),
        }
