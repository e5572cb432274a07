"""Predictions -> scores with intervals."""

__all__ = ["abilities", "results", "scores", "statistics"]
