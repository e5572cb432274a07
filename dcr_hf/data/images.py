"""Untrusted bytes -> an RGB image, or the reason for rejecting them; and training's random crop."""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dcr_hf.files import FORMATS, PixelRangeError, eight_bits

MIN_SIDE = 16
MAX_PIXELS = 64 * 2**20
Image.init()  # PIL loads most decoders on demand, but not if given a list of formats


class BadImageError(ValueError):
    """An image that cannot be used; the message is a short reason, the same for all images of a kind."""


def decode_image(content: bytes, enough: int | None = None) -> Image.Image:
    """Encoded bytes -> upright RGB image; an animation's first frame; transparency on white.

    Args:
        content: the file.
        enough: a side in pixels. A JPEG is decoded at a half, a quarter or an eighth of its size if both sides keep at
            least this length, which is faster. By default at full size.

    Raises:
        BadImageError: empty, not an image, truncated, corrupt, a side under 16 pixels, more than 67 million pixels.
    """
    if not content:
        raise BadImageError("empty")
    # Broken files make PIL raise OSError, SyntaxError, ValueError, struct.error, IndexError and more. No file may end
    # a run; every bad one is counted.
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _refuse_absurd_size(*image.size)
        if enough is not None:
            image.draft(image.mode, (enough, enough))  # does nothing to other formats
        return ImageOps.exif_transpose(_to_rgb(image))
    except BadImageError:
        raise
    except PixelRangeError as error:
        raise BadImageError(str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImageError("too many pixels") from error
    except Exception as error:
        raise BadImageError("truncated" if "truncated" in str(error).lower() else "corrupt") from error


def _refuse_absurd_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise BadImageError("too small")
    if width * height > MAX_PIXELS:
        raise BadImageError("too many pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def random_resized_crop(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random part of the image, `scale` of its area, aspect ratio in `ratio`, bicubically resized to a square.

    The distribution is that of torchvision's RandomResizedCrop. If no such part fits, the largest centred one with the
    nearest ratio is taken.
    """
    left, top, w, h = draw_box(*image.size, scale, ratio, rng.uniform, lambda limit: int(rng.integers(limit)))
    # Cut out first: with `resize(box=...)` the filter's edge would see pixels outside the part.
    return image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)


def draw_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniform: Callable[[float, float], float],
    below: Callable[[int], int],
) -> tuple[int, int, int, int]:
    """torchvision's random box in an image: (left, top, width, height) in pixels.

    Args:
        scale, ratio: bounds of its share of the area and of its aspect ratio, width / height. After ten boxes that do
            not fit, the largest centred one with the nearest ratio is taken.
        uniform: draws a number between two; below: a whole number from 0, less than one.
    """
    for _ in range(10):
        area = width * height * uniform(*scale)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return below(width - w + 1), below(height - h + 1), w, h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h
