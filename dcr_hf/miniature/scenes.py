"""Scenes: one large object of a class, nine attributes that mirror MMVP's nine visual patterns, drawn from a seed.

The same (draw, index) gives the same scene, and the same scene the same pixels.
"""

import colorsys
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "house")
# Draws differ in the first number of their seeds, so that no two share a scene.
DRAWS = {"train": 0, "dev": 1, "test": 2}

_UNIT = 32.0  # scenes are laid out on a 32 x 32 square, whatever the size they are drawn at
_SUPERSAMPLING = 4
_HUES = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.61, "purple": 0.78}
_RADIUS = {"near": 9.5, "far": 7.0}
_CLASS_KEY, _LOOK_KEY = 11, 12  # two streams of random numbers, so that the background cannot know the class


class Attribute(NamedTuple):
    """What varies within a class: its place in MMVP's list of patterns is its place in ATTRIBUTES."""

    name: str
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute("orientation", ("left", "right")),
    Attribute("feature", ("crown", "bare")),
    Attribute("state", ("broken", "whole")),
    Attribute("count", ("one", "two", "three")),
    Attribute("position", ("above", "below")),
    Attribute("color", tuple(_HUES)),
    Attribute("structure", ("solid", "striped", "hollow")),
    Attribute("text", ("L", "O", "T", "X")),
    Attribute("viewpoint", ("near", "far")),
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

    def changed(self, attribute: str, value: str) -> "Scene":
        """The same scene but for one attribute."""
        return replace(self, **{attribute: value})


def sample_scene(draw: str, index: int, seed: int = 0) -> Scene:
    """Scene `index` of a draw; classes and attributes are independent and uniform.

    Raises:
        ValueError: an unknown draw.
    """
    if draw not in DRAWS:
        raise ValueError(f"unknown draw {draw!r}; there are {', '.join(DRAWS)}.")
    place = (DRAWS[draw], seed, index)
    random = np.random.default_rng((*place, _CLASS_KEY))
    values = {attribute.name: str(random.choice(attribute.values)) for attribute in ATTRIBUTES}
    return Scene(shape=str(random.choice(SHAPES)), **values, look=place)


def render(scene: Scene, size: int = 32, background: tuple[int, ...] | None = None) -> Image.Image:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: side of the image in pixels.
        background: the `look` of another scene, to stand before its background.

    Returns:
        an RGB image, size x size.
    """
    canvas = _Canvas(_background(background or scene.look, size * _SUPERSAMPLING))
    look = np.random.default_rng((*scene.look, _LOOK_KEY))
    center = np.array([15.5, 15.5]) + look.uniform(-1, 1, 2)
    radius = _RADIUS[scene.viewpoint] * look.uniform(0.95, 1.05)
    turn = np.deg2rad(look.uniform(-6, 6))
    ink = colorsys.hsv_to_rgb(
        (_HUES[scene.color] + look.uniform(-0.02, 0.02)) % 1, look.uniform(0.75, 1), look.uniform(0.8, 1)
    )
    moon_side = look.uniform(-1, 1)
    noise = look.normal(0, 0.012, (size, size, 3))

    def place(points: np.ndarray) -> np.ndarray:
        """The object's own coordinates (its radius is 1, y down) -> the canvas."""
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return center + radius * points @ rotation.T

    _draw_beak(canvas, place, scene.orientation)
    _draw_body(canvas, place, scene, ink)
    if scene.feature == "crown":
        crown = [(-0.62, -0.62), (-0.75, -1.4), (-0.3, -1.05), (0, -1.5), (0.3, -1.05), (0.75, -1.4), (0.62, -0.62)]
        canvas.polygon(place(np.array(crown)), (1.0, 0.85, 0.1), outline=(0.25, 0.15, 0))
    if scene.state == "broken":
        crack = [(0.25, -1.1), (-0.3, -0.4), (0.3, 0.1), (-0.3, 0.55), (0.2, 1.15)]
        canvas.line(place(np.array(crack)), (0.03, 0.03, 0.03), 0.9 + 0.1 * radius)
    for number in range(("one", "two", "three").index(scene.count) + 1):
        canvas.disc((4.0 + 5.2 * number, 28.6), 1.9, (0.98, 0.98, 0.98), outline=(0.1, 0.1, 0.1))
    moon_y = 4.6 if scene.position == "below" else 27.2
    canvas.disc((27.2 + 0.4 * moon_side, moon_y), 3.1, (0.75, 0.95, 1.0), outline=(0.05, 0.1, 0.35))
    _draw_letter(canvas, scene.text)
    pixels = np.asarray(canvas.image.reduce(_SUPERSAMPLING), dtype=np.float64) / 255 + noise
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


class _Canvas:
    """Draws in layout units; colours are RGB fractions."""

    def __init__(self, image: Image.Image):
        self.image = image
        self._draw = ImageDraw.Draw(image)
        self._scale = image.width / _UNIT

    def polygon(self, points: np.ndarray, color, outline=None) -> None:
        place = [tuple(point) for point in np.asarray(points) * self._scale]
        self._draw.polygon(place, fill=_rgb(color))
        if outline is not None:
            self._draw.line([*place, place[0]], fill=_rgb(outline), width=round(0.6 * self._scale), joint="curve")

    def line(self, points: np.ndarray, color, width: float) -> None:
        place = [tuple(point) for point in np.asarray(points) * self._scale]
        self._draw.line(place, fill=_rgb(color), width=round(width * self._scale), joint="curve")

    def disc(self, center, radius: float, color, outline) -> None:
        box = [(axis + side * radius) * self._scale for side in (-1, 1) for axis in center]
        self._draw.ellipse(box, fill=_rgb(color), outline=_rgb(outline), width=round(0.5 * self._scale))

    def masked(self, mask: Image.Image, color) -> None:
        self.image.paste(_rgb(color), (0, 0), mask)

    def mask(self, points: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A mask of a polygon, and the means to draw on it."""
        mask = Image.new("L", self.image.size, 0)
        draw = ImageDraw.Draw(mask)
        draw.polygon([tuple(point) for point in points * self._scale], fill=255)
        return mask, draw


def _rgb(color) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in color)


def _background(look: tuple[int, ...], side: int) -> Image.Image:
    """A slow gradient between two muted colours, in any direction."""
    random = np.random.default_rng((*look, _LOOK_KEY + 1))
    ends = np.array(
        [
            colorsys.hsv_to_rgb(random.uniform(), random.uniform(0.05, 0.35), random.uniform(0.3, 0.75))
            for _ in range(2)
        ]
    )
    angle = random.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, side), np.linspace(-0.5, 0.5, side))
    share = (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2))[..., None]
    return Image.fromarray((255 * (ends[0] * (1 - share) + ends[1] * share)).astype(np.uint8))


def _draw_beak(canvas: _Canvas, place, orientation: str) -> None:
    side = -1 if orientation == "left" else 1
    beak = np.array([(0.5, -0.62), (1.5, 0.0), (0.5, 0.62)]) * (side, 1)
    canvas.polygon(place(beak), (1.0, 0.5, 0.0), outline=(0.2, 0.08, 0))


def _draw_body(canvas: _Canvas, place, scene: Scene, ink) -> None:
    outline = _outline(scene.shape)
    dark = tuple(0.25 * part for part in ink)
    if scene.structure == "hollow":
        mask, draw = canvas.mask(place(outline))
        inner = [tuple(point) for point in place(0.55 * outline) * canvas.image.width / _UNIT]
        draw.polygon(inner, fill=0)
        canvas.masked(mask, ink)
    else:
        canvas.polygon(place(outline), ink)
    if scene.structure == "striped":
        mask, _ = canvas.mask(place(outline))
        stripes = Image.new("L", canvas.image.size, 0)
        draw = ImageDraw.Draw(stripes)
        for height in np.arange(-0.95, 1.0, 0.62):
            band = place(np.array([(-1.2, height), (1.2, height), (1.2, height + 0.3), (-1.2, height + 0.3)]))
            draw.polygon([tuple(point) for point in band * canvas.image.width / _UNIT], fill=255)
        canvas.masked(Image.fromarray(np.minimum(np.asarray(mask), np.asarray(stripes))), (0.97, 0.97, 0.97))
    canvas.line(np.vstack([place(outline), place(outline)[:1]]), dark, 0.6)


def _outline(shape: str) -> np.ndarray:
    """Corners of a shape within the unit circle, y down."""
    if shape == "circle":
        return _polar(np.linspace(0, 2 * np.pi, 40, endpoint=False), 0.95)
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0, -1.0), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "diamond":
        return np.array([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        return _polar(angles - np.pi / 2, np.where(np.arange(10) % 2, 0.45, 1.12))
    if shape == "cross":
        arm = 0.36
        return np.array(
            [
                *((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)),
                *((arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)),
            ]
        )
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 16
    return np.array([(0, -1.05), (1.0, -0.2), (0.72, -0.2), (0.72, 0.95), (-0.72, 0.95), (-0.72, -0.2), (-1.0, -0.2)])


def _polar(angles: np.ndarray, radius) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.broadcast_to(radius, angles.shape)[:, None]


_STROKES = {
    "L": [[(0.1, 0), (0.1, 1), (0.95, 1)]],
    "O": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1.1)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
}


def _draw_letter(canvas: _Canvas, letter: str) -> None:
    canvas.polygon(np.array([(0.6, 0.6), (8.4, 0.6), (8.4, 8.4), (0.6, 8.4)]), (0.96, 0.96, 0.92))
    for stroke in _STROKES[letter]:
        canvas.line(np.array([2.4, 2.4]) + 4.2 * np.array(stroke), (0.08, 0.08, 0.3), 1.5)
