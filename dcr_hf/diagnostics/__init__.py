"""What a trained encoder, its projector and the denoiser show together; see docs/diagnostics.md.

A measurement of a finished encoder that no benchmark makes enters here.
"""

__all__ = ["predictions", "report", "scatter"]
