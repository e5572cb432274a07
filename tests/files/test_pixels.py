"""Pictures of many kinds, through training's decoder and evaluation's: the same pixels, or both refuse."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dcr_hf.data.images import BadImageError
from dcr_hf.data.images import decode_image as decode_for_training
from dcr_hf.evaluation.readers.decode import ImageError
from dcr_hf.evaluation.readers.decode import decode_image as decode_for_evaluation
from dcr_hf.files import PixelRangeError, eight_bits


def photo():
    values = np.linspace(0, 255, 64 * 80 * 3).reshape(64, 80, 3)
    return Image.fromarray(values.astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def long_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("k", "x" * (3 << 20), zip=True)
    return encode(photo(), "PNG", pnginfo=info)


GRAY16 = Image.fromarray(np.linspace(0, 65535, 64 * 80).reshape(64, 80).astype(np.uint16))
ZOO = {
    "cmyk": encode(photo().convert("CMYK"), "JPEG"),
    "gray": encode(photo().convert("L"), "JPEG"),
    "gray16 png": encode(GRAY16, "PNG"),
    "gray16 tiff": encode(GRAY16, "TIFF"),
    "float": encode(Image.fromarray(np.linspace(0, 1, 64 * 80).reshape(64, 80).astype(np.float32)), "TIFF"),
    "float beyond": encode(Image.fromarray(np.full((64, 80), 300, np.float32)), "TIFF"),
    "int32": encode(Image.fromarray(np.arange(64 * 80).reshape(64, 80).astype(np.int32)), "TIFF"),
    "int32 beyond": encode(Image.fromarray(np.full((64, 80), 2**30, np.int32)), "TIFF"),
    "one bit": encode(photo().convert("1"), "PNG"),
    "palette": encode(photo().convert("P"), "PNG"),
    "lab": encode(photo().convert("LAB"), "TIFF"),
    "gif": encode(photo(), "GIF", save_all=True, append_images=[photo()]),
    "webp": encode(photo(), "WEBP", save_all=True, append_images=[photo()]),
    "ppm": encode(photo(), "PPM"),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "long text": long_text(),
    "empty": b"",
    "cut": encode(photo(), "PNG")[:2000],
    "text": b"<html>",
}


@pytest.mark.parametrize("kind", ZOO)
def test_training_and_evaluation_agree(kind):
    try:
        trained = np.asarray(decode_for_training(ZOO[kind]))
    except BadImageError:
        with pytest.raises(ImageError, match="the file"):
            decode_for_evaluation(ZOO[kind], "the file")
    else:
        assert np.array_equal(trained, np.asarray(decode_for_evaluation(ZOO[kind], "the file")))


def test_deep_pixels_are_scaled():
    assert np.asarray(eight_bits(GRAY16))[-1, -1] == 255 and np.asarray(eight_bits(GRAY16))[0, 0] == 0
    half = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert np.asarray(eight_bits(half)).tolist() == [[128] * 4] * 4
    for values in (np.full((4, 4), 1.5), np.full((4, 4), -0.1), np.full((4, 4), np.nan)):
        with pytest.raises(PixelRangeError):
            eight_bits(Image.fromarray(values.astype(np.float32)))


def test_a_long_compressed_text_ends_nothing():
    assert len(zlib.compress(b"x" * (3 << 20))) < 10_000
    with pytest.raises(ImageError, match=r"shard 0: s1.*damaged"):
        decode_for_evaluation(ZOO["long text"], "shard 0: s1")
