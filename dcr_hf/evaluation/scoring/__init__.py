"""Predictions -> scores with intervals."""

__all__ = ["results", "scores", "statistics"]
