import io
import math

import numpy as np
import pytest
from PIL import Image

from dcr_hf.data.images import BadImageError, decode_image, random_resized_crop
from helpers.images import encoded, photographs, png_claiming


def photo(side=64):
    return photographs(3, side)[2]


def damaged(content):
    """The same with a stretch in its middle overwritten."""
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 40 + content[middle + 40 :]


def test_a_jpeg_comes_back_as_it_is():
    content = encoded(photo(), quality=95)
    found = decode_image(content)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP")],
)
def test_any_mode_becomes_rgb_of_the_same_scene(mode, format):
    found = np.asarray(decode_image(encoded(photo().convert(mode), format))).astype(float)
    expected = np.asarray(photo()).astype(float)
    assert found.shape == (64, 64, 3)
    assert np.corrcoef(found.mean(axis=2).ravel(), expected.mean(axis=2).ravel())[0, 1] > 0.5


def test_sixteen_bits_are_scaled_not_clipped():
    samples = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    found = np.asarray(decode_image(encoded(Image.fromarray(samples), "PNG")))
    np.testing.assert_array_equal(found[..., 0], samples >> 8)


def test_transparent_pixels_are_white():
    image = photo().convert("RGBA")
    image.putalpha(0)
    assert (np.asarray(decode_image(encoded(image, "PNG"))) == 255).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((5, 5)) == (255, 0, 0)


def test_exif_orientation_is_applied():
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees counter-clockwise
    found = decode_image(encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404 not found</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image"),
        (encoded(photo())[:900], "truncated"),
        (encoded(photo(), "PNG")[:3000], "truncated"),
        (png_claiming(50_000, 50_000), "too many pixels"),
        (png_claiming(9_000, 9_000), "too many pixels"),
        (encoded(photo().resize((15, 300))), "too small"),
        (damaged(encoded(photo(), "PNG")), "corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_has_a_reason(content, reason):
    with pytest.raises(BadImageError, match=f"^{reason}$"):
        decode_image(content)


def test_crops_are_parts_of_the_given_area_and_ratio():
    # Pixel values are the coordinates: a crop's corners tell its box.
    height, width = 120, 200
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        crop = np.asarray(random_resized_crop(image, 224, rng, scale=(0.5, 0.8), ratio=(0.9, 1.6))).astype(int)
        w = crop[112, -1, 0] - crop[112, 0, 0] + 1
        h = crop[-1, 112, 1] - crop[0, 112, 1] + 1
        areas.append(w * h / (width * height))
        assert 0.85 < w / h < 1.7
    assert 0.48 < min(areas) < 0.55 and 0.75 < max(areas) < 0.82
    assert np.std(areas) > 0.05


def test_a_very_narrow_image_gives_its_middle():
    image = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 20, axis=0)).convert("RGB")
    crop = np.asarray(random_resized_crop(image, 32, np.random.default_rng(0)))[..., 0]
    assert crop.shape == (32, 32)
    assert 110 < crop.min() and crop.max() < 145  # 27 of 256 columns around the centre


def test_the_whole_image_is_resized_bicubically():
    image = photo(96)
    found = random_resized_crop(image, 32, np.random.default_rng(0), scale=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))


def test_a_crop_sees_nothing_outside_its_box():
    options = {"scale": (0.2, 0.2), "ratio": (1, 1)}
    marked = np.where(np.arange(64)[:, None, None] % 2 == 0, 255, 0).astype(np.uint8).repeat(64, 1).repeat(3, 2)
    crop = random_resized_crop(Image.fromarray(marked), 40, np.random.default_rng(3), **options)
    side = round(math.sqrt(0.2) * 64)
    draw = np.random.default_rng(3)
    draw.uniform(0.2, 0.2), draw.uniform(0, 0)
    left, top = int(draw.integers(64 - side + 1)), int(draw.integers(64 - side + 1))
    part = marked[top : top + side, left : left + side]
    expected = Image.fromarray(part).resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(crop), np.asarray(expected))
