"""Scenes: one large object of a class, nine attributes that mirror MMVP's nine visual patterns, drawn from a seed.

The same (draw, seed, index) gives the same scene; `drawing` makes the same pixels of it.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "house")
# Draws differ in the first number of their seeds, so that no two share a scene.
DRAWS = {"train": 0, "dev": 1, "test": 2}

_CLASS_KEY = 11  # its own stream of random numbers: what a scene is cannot depend on what it looks like


class Attribute(NamedTuple):
    """What varies within a class: its number in MMVP's list of patterns is its number in ATTRIBUTES."""

    name: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute("orientation", ("left", "right")),
    Attribute("feature", ("crown", "bare")),
    Attribute("state", ("broken", "whole")),
    Attribute("count", ("one", "two", "three")),
    Attribute("position", ("above", "below")),
    Attribute("color", ("red", "yellow", "green", "blue", "purple")),
    Attribute("structure", ("solid", "striped", "hollow")),
    Attribute("text", ("L", "O", "T", "X")),
    Attribute("viewpoint", ("near", "far")),
)

# With the shape they make a fine class, such as "red striped star": of so many that two images are seldom of one.
FINE = ("color", "structure")
FINE_CLASSES = tuple(
    " ".join(words) for words in product(*(a.values for name in FINE for a in ATTRIBUTES if a.name == name), SHAPES)
)


@dataclass(frozen=True)
class Scene:
    """What is to be seen, and the seed of what carries no meaning: background, small shifts, shades."""

    shape: str
    orientation: str
    feature: str
    state: str
    count: str
    position: str
    color: str
    structure: str
    text: str
    viewpoint: str
    look: tuple[int, ...]

    @property
    def fine(self) -> str:
        """One of FINE_CLASSES."""
        return " ".join((*(getattr(self, name) for name in FINE), self.shape))

    def changed(self, attribute: str, value: str) -> "Scene":
        """The same scene but for one attribute."""
        fields: dict[str, Any] = {attribute: value}
        return replace(self, **fields)


def sample_scene(draw: str, index: int, seed: int = 0) -> Scene:
    """Scene `index` of a draw; classes and attributes are independent and uniform.

    Raises:
        ValueError: an unknown draw.
    """
    if draw not in DRAWS:
        raise ValueError(f"unknown draw {draw!r}; there are {', '.join(DRAWS)}.")
    key = (DRAWS[draw], seed, index)
    random = np.random.default_rng((*key, _CLASS_KEY))
    values = {attribute.name: str(random.choice(attribute.values)) for attribute in ATTRIBUTES}
    return Scene(shape=str(random.choice(SHAPES)), **values, look=key)
