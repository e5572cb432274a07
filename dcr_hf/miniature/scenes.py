"""Scenes: one large object of a class, nine attributes that mirror MMVP's nine visual patterns, drawn from a seed.

The same (draw, index) gives the same scene, and the same scene the same pixels.
"""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "heart", "house")
# Draws differ in the first number of their seeds, so that no two share a scene.
DRAWS = {"train": 0, "dev": 1, "test": 2}

_UNIT = 32.0  # scenes are laid out on a 32 x 32 square, whatever the size they are drawn at
_SUPERSAMPLING = 4
_HUES = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.61, "purple": 0.78}
_LEAN = 0.33  # an outline leans up to this far towards another class
_FAINTEST = 0.12  # how much of a detail is drawn at least: what is faint takes good eyes
_ANGLES = 120  # a multiple of every shape's own symmetry
_RADIUS = {"near": 9.2, "far": 7.2}
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
    radius = _RADIUS[scene.viewpoint] * look.uniform(0.88, 1.12)
    stretch = look.uniform(0.9, 1.1, 2)
    turn = np.deg2rad(look.uniform(-8, 8))
    lean = look.uniform(0, _LEAN)
    towards = str(look.choice(SHAPES))
    # How much of each detail is drawn, whatever its value is.
    beak, crown, crack, dots, moon, letter, pattern, hue = look.uniform(_FAINTEST, 1, 8)
    ink = colorsys.hsv_to_rgb((_HUES[scene.color] + look.uniform(-0.02, 0.02)) % 1, hue, look.uniform(0.8, 1))
    moved = look.uniform(0, 1, 6)  # how far what stands around the object stands from its corner
    noise = look.normal(0, 0.02, (size, size, 3))

    def place(points: np.ndarray) -> np.ndarray:
        """The object's own coordinates (its radius is 1, y down) -> the canvas."""
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        return center + radius * (points * stretch) @ rotation.T

    with canvas.faded(beak):
        side = -1 if scene.orientation == "left" else 1
        corners = np.array([(0.5, -0.62), (1.5, 0.0), (0.5, 0.62)]) * (side, 1)
        canvas.polygon(place(corners), (1.0, 0.5, 0.0), outline=(0.2, 0.08, 0))
    outline = (1 - lean) * _outline(scene.shape) + lean * _outline(towards)
    _draw_body(canvas, place, outline, scene.structure, ink, pattern)
    if scene.feature == "crown":
        with canvas.faded(crown):
            canvas.polygon(place(_CROWN), (1.0, 0.85, 0.1), outline=(0.25, 0.15, 0))
    if scene.state == "broken":
        with canvas.faded(crack):
            canvas.line(place(_CRACK), (0.03, 0.03, 0.03), 0.9 + 0.1 * radius)
    with canvas.faded(dots):
        for number in range(("one", "two", "three").index(scene.count) + 1):
            at = (3.4 + 4 * moved[0] + 5.0 * number, 28.9 - 1.6 * moved[1])
            canvas.disc(at, 1.9, (0.98, 0.98, 0.98), outline=(0.1, 0.1, 0.1))
    with canvas.faded(moon):
        height = 4.4 + 6 * moved[2] if scene.position == "below" else 27.6 - 6 * moved[2]
        canvas.disc((27.8 - 2 * moved[3], height), 3.2, (0.75, 0.95, 1.0), outline=(0.05, 0.1, 0.35))
    with canvas.faded(letter):
        _draw_letter(canvas, scene.text, 2.4 * moved[4:])
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

    def mask(self, polygons: list[np.ndarray], strength: float = 1.0) -> Image.Image:
        """Where the polygons are, that strong."""
        mask = Image.new("L", self.image.size, 0)
        draw = ImageDraw.Draw(mask)
        for points in polygons:
            draw.polygon([tuple(point) for point in points * self._scale], fill=round(255 * strength))
        return mask

    @contextmanager
    def faded(self, strength: float) -> Iterator[None]:
        """What is drawn meanwhile, only that strong."""
        before = self.image.copy()
        yield
        self.image.paste(Image.blend(before, self.image, strength))


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


def _draw_body(canvas: _Canvas, place, outline: np.ndarray, structure: str, ink, strength: float) -> None:
    corners = place(outline)
    behind = canvas.image.copy()
    canvas.polygon(corners, ink)
    if structure == "hollow":
        canvas.image.paste(behind, (0, 0), canvas.mask([place(0.55 * outline)], strength))
    if structure == "striped":
        band = np.array([(-1.2, 0.0), (1.2, 0.0), (1.2, 0.3), (-1.2, 0.3)])
        bands = [place(band + np.array([0, height])) for height in np.arange(-0.95, 1.0, 0.62)]
        stripes = ImageChops.darker(canvas.mask(bands, strength), canvas.mask([corners]))
        canvas.image.paste(_rgb((0.97, 0.97, 0.97)), (0, 0), stripes)
    canvas.line(np.vstack([corners, corners[:1]]), tuple(0.25 * part for part in ink), 0.6)


@cache
def _outline(shape: str) -> np.ndarray:
    """(A, 2), y down: where rays from the middle at A equal angles leave the shape, so that shapes can be mixed."""
    corners = _corners(shape)
    ahead = np.roll(corners, -1, axis=0) - corners
    rays = _polar(np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False) - np.pi / 2, 1.0)
    # corner + s * ahead = r * ray, for every ray (rows) and edge (columns)
    determinant = rays[:, None, 0] * ahead[:, 1] - rays[:, None, 1] * ahead[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (corners[:, 0] * ahead[:, 1] - corners[:, 1] * ahead[:, 0]) / determinant
        s = (corners[:, 0] * rays[:, None, 1] - corners[:, 1] * rays[:, None, 0]) / determinant
    met = (r > 0) & (s >= -1e-9) & (s <= 1 + 1e-9)
    return rays * np.where(met, r, 0).max(axis=1)[:, None]


def _corners(shape: str) -> np.ndarray:
    """Corners of a shape around the middle, y down."""
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


_CROWN = np.array([(-0.62, -0.62), (-0.75, -1.4), (-0.3, -1.05), (0, -1.5), (0.3, -1.05), (0.75, -1.4), (0.62, -0.62)])
_CRACK = np.array([(0.25, -1.1), (-0.3, -0.4), (0.3, 0.1), (-0.3, 0.55), (0.2, 1.15)])
_STROKES = {
    "L": [[(0.1, 0), (0.1, 1), (0.95, 1)]],
    "O": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (1, 0)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1.1)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
}


def _draw_letter(canvas: _Canvas, letter: str, moved: np.ndarray) -> None:
    plate = np.array([(0.4, 0.4), (7.6, 0.4), (7.6, 7.6), (0.4, 7.6)])
    canvas.polygon(plate + moved, (0.96, 0.96, 0.92))
    for stroke in _STROKES[letter]:
        canvas.line(np.array([2.0, 2.0]) + moved + 4.0 * np.array(stroke), (0.08, 0.08, 0.3), 1.4)
