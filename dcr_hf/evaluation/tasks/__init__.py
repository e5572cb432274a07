"""Embeddings -> predictions, one module per protocol: pairs, clusters, classes, probes, retrieval.

A new protocol enters here, with its entry in `evaluation.benchmarks`.
"""

__all__ = ["clustering", "linear_probe", "mmvp", "ranking", "retrieval", "zeroshot"]
