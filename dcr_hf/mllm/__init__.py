"""Multimodal models (LLaVA-1.5) on MMVP, NaturalBench and CV-Bench: what an encoder contributes to a language model.

A new multimodal benchmark enters here, with its entry in `mllm.benchmarks`.
"""

__all__ = [
    "answers",
    "benchmarks",
    "cli",
    "cv_bench",
    "figures",
    "inputs",
    "mmvp",
    "model",
    "naturalbench",
    "parquet",
    "questions",
    "replies",
    "run",
    "tables",
]
