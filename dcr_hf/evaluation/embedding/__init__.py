"""Images and texts -> embeddings of an encoder, kept in a cache that knows what they depend on."""

__all__ = ["embed", "encoders", "identity", "inputs", "store"]
