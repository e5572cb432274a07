"""The method at a laptop's size: drawn scenes, a CLIP and a Stable Diffusion pretrained on them, DCR on both.

Everything that knows the scenes enters here, and nothing left of here knows them.
"""

__all__ = [
    "captions",
    "cli",
    "drawing",
    "fitting",
    "layouts",
    "measure",
    "models",
    "outlines",
    "pictures",
    "pretrain",
    "run",
    "scenes",
]
