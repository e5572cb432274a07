"""Which image formats are decoded, and how deep pixels become eight bits: in training and evaluation alike."""

import numpy as np
from PIL import Image

# Only formats with plain pixel decoders: for an EPS, PIL would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class PixelRangeError(ValueError):
    """Pixels whose range the file does not tell."""


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits, or of floats in [0, 1], scaled to 8 bits, where `convert` would clip; others unchanged.

    Raises:
        PixelRangeError: 32-bit numbers above 16 bits, floats outside [0, 1]: what is white is not known.
    """
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise PixelRangeError("32-bit pixels beyond 16 bits")
        return Image.fromarray((samples.astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "F":
        samples = np.asarray(image)
        if not (samples.min() >= 0 and samples.max() <= 1):  # also true for NaN
            raise PixelRangeError("float pixels outside 0 to 1")
        return Image.fromarray(np.round(samples * 255).astype(np.uint8))
    return image
