"""The positive view as torchvision makes it, image by image, of values in any range: what the released code has."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dcr_hf.data.images import draw_box

_GREY = (0.2989, 0.587, 0.114)


class TorchvisionView:
    """RandomResizedCrop, flips where wanted, then ColorJitter, drawn for each image, with torchvision's arithmetic.

    For values outside [0, 1] it differs from kornia's: it clamps after brightness, contrast and
    saturation and nowhere else, and which of the four comes first is drawn for each image.

    Args:
        image_size: side of the square images, in pixels.
        flips: left-right and upside down, each for half of the images.
    """

    scale, ratio = (0.9, 1.0), (0.9, 1.1)
    brightness = contrast = saturation = 0.1
    hue = 0.05

    def __init__(self, image_size: int, flips: bool):
        self.image_size = image_size
        self.flips = flips

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, S, S)"""
        return torch.stack([self._view(image) for image in images])

    def _view(self, image: Tensor) -> Tensor:
        image = self._crop(image)
        if self.flips:
            image = image.flip(-1) if _uniform(0, 1) < 0.5 else image
            image = image.flip(-2) if _uniform(0, 1) < 0.5 else image
        for operation in self.draw_jitter():
            image = operation(image)
        return image

    def _crop(self, image: Tensor) -> Tensor:
        top, left, height, width = self.draw_box(*image.shape[-2:])
        box = image[None, :, top : top + height, left : left + width]
        side = (self.image_size, self.image_size)
        return F.interpolate(box, side, mode="bilinear", antialias=True, align_corners=False)[0]

    def draw_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels."""
        left, top, w, h = draw_box(
            width, height, self.scale, self.ratio, _uniform, lambda limit: int(torch.randint(limit, ()))
        )
        return top, left, h, w

    def draw_jitter(self) -> list[Callable[[Tensor], Tensor]]:
        """The four operations on an image (3, H, W), in a random order, with random strengths."""
        factors = [_uniform(1 - most, 1 + most) for most in (self.brightness, self.contrast, self.saturation)]
        shift = _uniform(-self.hue, self.hue)
        operations: list[Callable[[Tensor], Tensor]] = [
            lambda image: blend(image, torch.zeros_like(image), factors[0]),
            lambda image: blend(image, grey(image).mean(), factors[1]),
            lambda image: blend(image, grey(image), factors[2]),
            lambda image: shift_hue(image, shift),
        ]
        return [operations[index] for index in torch.randperm(len(operations)).tolist()]


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def grey(image: Tensor) -> Tensor:
    """(3, H, W) -> (1, H, W), by the weights of ITU-R 601-2."""
    red, green, blue = image
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[None]


def blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    """factor * image + (1 - factor) * other, clamped to [0, 1]."""
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """(3, H, W) in RGB -> the same with its hue turned by `shift` of the circle. Values outside [0, 1] pass through
    the same formulas."""
    red, green, _ = image
    value, least = image.amax(dim=0), image.amin(dim=0)
    chroma, is_grey = value - least, value == least
    saturation = chroma / torch.where(is_grey, 1.0, value)
    distance = (value - image) / torch.where(is_grey, 1.0, chroma)
    from_red = torch.where(value == red, distance[2] - distance[1], 0.0)
    from_green = torch.where((value == green) & (value != red), 2 + distance[0] - distance[2], 0.0)
    from_blue = torch.where((value != green) & (value != red), 4 + distance[1] - distance[0], 0.0)
    hue = ((from_red + from_green + from_blue) / 6 + 1).fmod(1.0)

    turned = (hue + shift).remainder(1.0) * 6
    sector = turned.floor()
    fraction = turned - sector
    low = (value * (1 - saturation)).clamp(0, 1)
    falling = (value * (1 - saturation * fraction)).clamp(0, 1)
    rising = (value * (1 - saturation * (1 - fraction))).clamp(0, 1)
    order = sector.long().remainder(6)[None]
    channels = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    return torch.cat([torch.stack(sectors).gather(0, order) for sectors in channels])
