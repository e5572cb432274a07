"""The enhanced tower inside LLaVA: check a folder, swap it in, train LLaVA-1.5's two stages again.

What knows LLaVA's formats, weights or prompts enters here.
"""

__all__ = [
    "assemble",
    "config",
    "contract",
    "conversations",
    "examples",
    "folder",
    "model",
    "records",
    "run",
    "stages",
    "swap",
    "tower",
    "trainer",
    "weights",
]
