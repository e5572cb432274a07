"""A scene -> its pixels. The same scene gives the same ones."""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from dcr_hf.miniature.outlines import outline_between
from dcr_hf.miniature.scenes import SHAPES, Scene

_UNIT = 32.0  # scenes are laid out on a 32 x 32 square, whatever the size they are drawn at
_SUPERSAMPLING = 4
_HUES = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.61, "purple": 0.78}
_LEAN = 0.33  # an outline leans up to this far towards another class
_NOISE = 0.07  # of a pixel: hides what is faint
# How much of a detail is drawn at least. Every power of two between this and all of it is as frequent as the next, so
# that some of an attribute's details are plain, some take good eyes.
_FAINTEST = {
    "orientation": 0.06,
    "feature": 0.03,
    "state": 0.05,
    "count": 0.035,
    "position": 0.01,
    "color": 0.05,
    "structure": 0.2,
    "text": 0.02,
    "viewpoint": 0.25,
}
_RADIUS, _NEARER = 8.2, {"near": 1.7, "far": -1.7}
_LOOK_KEY = 12  # a stream of random numbers that knows nothing of class and attributes


@dataclass(frozen=True)
class Look:
    """What a scene looks like beyond what it is: drawn from its `look` alone.

    Attributes:
        center, stretch: (2,), in layout units, and the factors of x and y.
        turn: in radians.
        lean, towards: how far the outline leans, and towards which class.
        strength: of each detail, the share of it that is drawn, whatever its value is.
        hue, brightness: the shift of the object's hue, and its brightness.
        moved: (6,), how far what stands around the object stands from its corner.
    """

    center: np.ndarray
    stretch: np.ndarray
    turn: float
    lean: float
    towards: str
    strength: dict[str, float]
    hue: float
    brightness: float
    moved: np.ndarray

    @classmethod
    def draw(cls, random: np.random.Generator) -> "Look":
        return cls(
            center=np.array([15.5, 15.5]) + random.uniform(-1, 1, 2),
            stretch=np.array([1, -1]) * random.uniform(-0.1, 0.1) + 1,
            turn=float(np.deg2rad(random.uniform(-8, 8))),
            lean=random.uniform(0, _LEAN),
            towards=str(random.choice(SHAPES)),
            strength={name: least ** random.uniform() for name, least in _FAINTEST.items()},
            hue=random.uniform(-0.02, 0.02),
            brightness=random.uniform(0.8, 1),
            moved=random.uniform(0, 1, 6),
        )


def look_of(scene: Scene) -> Look:
    return Look.draw(np.random.default_rng((*scene.look, _LOOK_KEY)))


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
    random = np.random.default_rng((*scene.look, _LOOK_KEY))
    look = Look.draw(random)
    strength, moved = look.strength, look.moved
    radius = _RADIUS + _NEARER[scene.viewpoint] * strength["viewpoint"]
    ink = colorsys.hsv_to_rgb((_HUES[scene.color] + look.hue) % 1, strength["color"], look.brightness)
    noise = random.normal(0, _NOISE, (size, size, 3))

    def on_canvas(points: np.ndarray) -> np.ndarray:
        """The object's own coordinates (its radius is 1, y down) -> the canvas."""
        cos, sin = np.cos(look.turn), np.sin(look.turn)
        return look.center + radius * (points * look.stretch) @ np.array([[cos, -sin], [sin, cos]]).T

    with canvas.faded(strength["orientation"]):
        side = -1 if scene.orientation == "left" else 1
        corners = np.array([(0.5, -0.62), (1.5, 0.0), (0.5, 0.62)]) * (side, 1)
        canvas.polygon(on_canvas(corners), (1.0, 0.5, 0.0), outline=(0.2, 0.08, 0))
    outline = outline_between(scene.shape, look.towards, look.lean)
    _draw_body(canvas, on_canvas, outline, scene.structure, ink, strength["structure"])
    if scene.feature == "crown":
        with canvas.faded(strength["feature"]):
            canvas.polygon(on_canvas(_CROWN), (1.0, 0.85, 0.1), outline=(0.25, 0.15, 0))
    if scene.state == "broken":
        with canvas.faded(strength["state"]):
            canvas.line(on_canvas(_CRACK), (0.03, 0.03, 0.03), 0.9 + 0.1 * radius)
    with canvas.faded(strength["count"]):
        for number in range(("one", "two", "three").index(scene.count) + 1):
            at = (3.4 + 1.5 * moved[0] + 5.0 * number, 28.9 - 1.6 * moved[1])
            canvas.disc(at, 1.9, (0.98, 0.98, 0.98), outline=(0.1, 0.1, 0.1))
    with canvas.faded(strength["position"]):
        height = 4.4 + 2 * moved[2] if scene.position == "below" else 27.6 - 2 * moved[2]
        canvas.disc((27.8 - 2 * moved[3], height), 3.2, (0.75, 0.95, 1.0), outline=(0.05, 0.1, 0.35))
    with canvas.faded(strength["text"]):
        _draw_letter(canvas, scene.text, 1.2 * moved[4:])
    pixels = np.asarray(canvas.image.reduce(_SUPERSAMPLING), dtype=np.float64) / 255 + noise
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


class _Canvas:
    """Draws in layout units; colours are RGB fractions."""

    def __init__(self, image: Image.Image):
        self.image = image
        self._draw = ImageDraw.Draw(image)
        self._scale = image.width / _UNIT

    def polygon(self, points: np.ndarray, color, outline=None) -> None:
        pixels = [tuple(point) for point in np.asarray(points) * self._scale]
        self._draw.polygon(pixels, fill=_rgb(color))
        if outline is not None:
            self._draw.line([*pixels, pixels[0]], fill=_rgb(outline), width=round(0.6 * self._scale), joint="curve")

    def line(self, points: np.ndarray, color, width: float) -> None:
        pixels = [tuple(point) for point in np.asarray(points) * self._scale]
        self._draw.line(pixels, fill=_rgb(color), width=round(width * self._scale), joint="curve")

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


def _draw_body(canvas: _Canvas, on_canvas, outline: np.ndarray, structure: str, ink, strength: float) -> None:
    corners = on_canvas(outline)
    background = canvas.image.copy()
    canvas.polygon(corners, ink)
    if structure == "hollow":
        canvas.image.paste(background, (0, 0), canvas.mask([on_canvas(0.55 * outline)], strength))
    if structure == "striped":
        band = np.array([(-1.2, 0.0), (1.2, 0.0), (1.2, 0.3), (-1.2, 0.3)])
        bands = [on_canvas(band + np.array([0, height])) for height in np.arange(-0.95, 1.0, 0.62)]
        stripes = ImageChops.darker(canvas.mask(bands, strength), canvas.mask([corners]))
        canvas.image.paste(_rgb((0.97, 0.97, 0.97)), (0, 0), stripes)
    canvas.line(np.vstack([corners, corners[:1]]), tuple(0.25 * part for part in ink), 0.6)


_CROWN = np.array([(-0.62, -0.62), (-0.75, -1.4), (-0.3, -1.05), (0, -1.5), (0.3, -1.05), (0.75, -1.4), (0.62, -0.62)])
_CRACK = np.array([(0.25, -1.1), (-0.3, -0.4), (0.3, 0.1), (-0.3, 0.55), (0.2, 1.15)])
_STROKES: dict[str, list[list[tuple[float, float]]]] = {
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
