"""Images and texts -> embeddings of an encoder, cached by everything that they depend on."""

__all__ = ["embed", "encoders", "identity", "inputs", "store"]
