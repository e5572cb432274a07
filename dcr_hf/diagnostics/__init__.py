"""Diagnostics of a trained encoder with its projector and the denoiser; see docs/diagnostics.md.

A measurement of a finished encoder that is not a benchmark enters here.
"""

__all__ = ["control", "curve", "distance", "predictions", "report", "scatter"]
