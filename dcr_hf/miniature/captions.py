"""What is said about a scene: statements, full captions, and coarse ones that name details rarely."""

from collections.abc import Iterable

import numpy as np

from dcr_hf.miniature.scenes import ATTRIBUTES, FINE, SHAPES, Scene

PROMPT = "a photo of {}"
# How often a coarse caption names an attribute: captions that leave details out make a CLIP that is weak on details.
# What stands out is named less often than what is small: an attribute is learnt the sooner, the larger it is and the
# more often it is named, and a base CLIP should be past the floor and short of the ceiling on each.
NAMED = {
    "orientation": 0.43,
    "feature": 0.43,
    "state": 0.35,
    "count": 0.75,
    "position": 0.75,
    "color": 0.2,
    "structure": 0.42,
    "text": 0.7,
    "viewpoint": 0.26,
}
# Where the classes are fine ones, captions always name them.
NAMED_WITH_FINE_CLASSES = NAMED | dict.fromkeys(FINE, 1.0)

_AFTER_THE_NOUN = ("orientation", "feature", "state", "count", "position", "text", "viewpoint")
_PHRASES = {
    ("feature", "crown"): "with a crown",
    ("feature", "bare"): "without a crown",
    ("count", "one"): "with one dot",
    ("count", "two"): "with two dots",
    ("count", "three"): "with three dots",
    ("viewpoint", "near"): "seen from near",
    ("viewpoint", "far"): "seen from afar",
}


def phrase(attribute: str, value: str) -> str:
    """'facing left', 'with a crown', 'red', ..."""
    if attribute == "orientation":
        return f"facing {value}"
    if attribute == "position":
        return f"{value} a moon"
    if attribute == "text":
        return f"marked {value}"
    return _PHRASES.get((attribute, value), value)


def describe(scene: Scene, named: Iterable[str]) -> str:
    """'a red star facing left': the class and the named attributes, always in the same order."""
    named = set(named)
    before = [phrase(name, getattr(scene, name)) for name in ("color", "structure") if name in named]
    after = [phrase(name, getattr(scene, name)) for name in _AFTER_THE_NOUN if name in named]
    return " ".join(["a", *before, scene.shape, *after])


def full_caption(scene: Scene) -> str:
    """A photo's caption with all nine attributes."""
    return PROMPT.format(describe(scene, [attribute.name for attribute in ATTRIBUTES]))


def coarse_caption(scene: Scene, random: np.random.Generator, named: dict[str, float] | None = None) -> str:
    """A photo's caption that names each attribute with the probability in `named` (default: NAMED)."""
    chances = named or NAMED
    kept = [name for name, chance in chances.items() if random.uniform() < chance]
    return PROMPT.format(describe(scene, kept))


def template(attribute: str) -> list[str]:
    """Zero-shot prompts for the values of an attribute, one for each class; {c} is the value's phrase."""
    if attribute in ("color", "structure"):
        return [PROMPT.format(f"a {{c}} {shape}") for shape in SHAPES]
    return [PROMPT.format(f"a {shape} {{c}}") for shape in SHAPES]
