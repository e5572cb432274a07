"""`evaluate` modules, loaded by path: each folder also works alone, as `evaluate.load("dcr_hf/metrics/NAME")`.

A number that a benchmark reports enters here, as a folder with one module.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["METRICS", "load_metric"]

METRICS = ("classification", "clustering", "paired_accuracy", "retrieval_recall")


@cache
def load_metric(name: str) -> Any:
    """Load one of METRICS; it keeps its input in memory, so that processes do not wait for file locks."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return _evaluate_library().load(str(Path(__file__).parent / name), keep_in_memory=True)


def _evaluate_library() -> ModuleType:
    """`import evaluate`, not recipes/evaluate.py: a running recipe's folder is first on sys.path."""
    path = sys.path
    sys.path = [entry for entry in path if not (Path(entry) / "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path = path
