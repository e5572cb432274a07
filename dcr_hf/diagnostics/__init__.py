"""What a trained encoder, its projector and the denoiser say together; see docs/diagnostics.md."""
