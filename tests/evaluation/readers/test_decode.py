"""Hostile and odd images: decoded to RGB, or an error that names them."""

import io

import numpy as np
import pytest
from PIL import Image

from dcr_hf.evaluation.readers import decode
from dcr_hf.evaluation.readers.decode import ImageError, decode_image
from helpers.images import encoded, photographs


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "RGBA", "1"])
def test_modes_become_rgb(mode):
    image = photographs(1)[0].convert(mode)
    format = "TIFF" if mode in ("CMYK", "LA") else "PNG"
    decoded = decode_image(encoded(image, format), "x")
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_shades():
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(shades), "PNG"), "x"))
    np.testing.assert_allclose(decoded[..., 0], shades / 256, atol=1)


def test_first_frame_of_an_animation():
    frames = photographs(2)
    decoded = decode_image(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), "x")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(frames[0]))


def test_exif_rotation_is_not_applied():
    """As in CLIP_benchmark and in MMVP's script: numbers must agree."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(photographs(1)[0].crop((0, 0, 96, 40)), exif=exif), "x").size == (96, 40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a/b.jpg: no JPEG.*0 bytes"),
        (b"<html>404</html>", r"a/b.jpg: no JPEG"),
        (encoded(photographs(1)[0])[:-200], r"a/b.jpg: damaged image"),
        (encoded(photographs(1)[0], "ICO"), r"a/b.jpg: no JPEG"),
    ],
)
def test_what_is_refused(content, message):
    with pytest.raises(ImageError, match=message):
        decode_image(content, "a/b.jpg")


def test_bombs_are_not_decoded(monkeypatch):
    """A few bytes that would be a picture of a hundred thousand pixels a side."""
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    with pytest.raises(ImageError, match=r"12000 x 12000 pixels, more than 100,000,000"):
        decode_image(bomb.getvalue(), "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb.png: damaged image"):
        decode_image(bomb.getvalue(), "bomb.png")
    assert decode.MAX_PIXELS == 100_000_000
