"""Bytes of an image file -> an RGB image, or an error that names the file. Images are untrusted data."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from dcr_hf.errors import UserError
from dcr_hf.files import FORMATS, PixelRangeError, eight_bits

MAX_PIXELS = 100_000_000
Image.init()  # load all decoders: PIL does not when `formats` is given


class ImageError(UserError):
    """An image that cannot be read. The run ends: scores on part of a benchmark are not its scores."""


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode as CLIP_benchmark and MMVP's script do, so that numbers agree: first frame, no EXIF rotation, plain RGB.

    Raises:
        ImageError: empty, truncated, of a format outside FORMATS, or of more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit
            file = Image.open(io.BytesIO(content), formats=FORMATS)
        if file.width * file.height > MAX_PIXELS:
            raise ImageError(f"{name}: {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}: not decoded.")
        return eight_bits(file).convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: no {', '.join(FORMATS)} image ({len(content):,} bytes).") from None
    except PixelRangeError as error:
        raise ImageError(f"{name}: {error}. Convert the image to 8 or 16 bits.") from None
    except Exception as error:  # PIL raises anything for broken files, also for too long a text in a PNG
        raise ImageError(f"{name}: damaged image: {error}. Fetch the data set again.") from None
