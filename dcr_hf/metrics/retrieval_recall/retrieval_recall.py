"""Recall at k of a ranked retrieval: the share of queries with any right answer among the first k."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
A query is a hit at k when any of its right answers is among its first k results, as CLIP-like papers count it: with
five captions per image one of them is enough. A list shorter than k is used in full.
"""
_INPUTS = """
Args:
    predictions: results of each query, best first: lists of integers.
    references: right answers of each query: lists of integers.
    ks: cut-offs, by default 1, 5 and 10.
Returns:
    recall@k for each k, a float.
Examples:
    >>> metric = evaluate.load("dcr_hf/metrics/retrieval_recall")
    >>> metric.compute(predictions=[[3, 4], [1, 0]], references=[[4, 5], [1]], ks=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0}
"""
_CITATION = "Radford et al., Learning transferable visual models from natural language supervision, ICML 2021."


class RetrievalRecall(evaluate.Metric):
    def _info(self):
        numbers = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)):
        # Rank of the first right answer, 0 is best; beyond the list: infinity.
        ranks = np.array(
            [
                next((rank for rank, found in enumerate(results) if found in right), np.inf)
                for results, right in zip(predictions, map(set, references), strict=True)
            ]
        )
        return {f"recall@{k}": float((ranks < k).mean()) for k in ks}
