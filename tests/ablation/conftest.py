"""The miniature's own models, as its tests make them."""

from miniature.conftest import draw, pretrained, tiny_size

__all__ = ["draw", "pretrained", "tiny_size"]
