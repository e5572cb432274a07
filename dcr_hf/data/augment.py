"""The positive view x+: random crop and colour jitter of each image in [0, 1], on the images' device."""

from collections.abc import Callable

import torch
from kornia.augmentation import (
    AugmentationSequential,
    ColorJitter,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
)
from torch import Tensor

from dcr_hf.data.released_view import TorchvisionView
from dcr_hf.models.encoder import ImageEncoder


class PositiveView:
    """Random resized crop, then colour jitter, with separate parameters for each image of the batch.

    Args:
        image_size: side of the square images, in pixels.
        flips: also flip at random, left-right and upside down, as the released code does. Off by default: the paper
            names crop and colour alone, and MMVP asks about orientation.
        normalized_by: an encoder in whose normalised pixel space the view is made, as in the released code, whose
            colour jitter clamps *normalised* values to [0, 1]; with torchvision's arithmetic, image by image.
    """

    augment: Callable[[Tensor], Tensor]

    def __init__(self, image_size: int, flips: bool = False, normalized_by: ImageEncoder | None = None):
        self.normalized_by = normalized_by
        if normalized_by is not None:
            self.augment = TorchvisionView(image_size, flips)
            return
        # Batched resampling: kornia's "slice" mode crops one image at a time.
        crop = RandomResizedCrop(
            (image_size, image_size), scale=(0.9, 1.0), ratio=(0.9, 1.1), cropping_mode="resample", align_corners=False
        )
        flip = [RandomHorizontalFlip(p=0.5), RandomVerticalFlip(p=0.5)] if flips else []
        jitter = ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05, p=1.0)
        self.augment = AugmentationSequential(crop, *flip, jitter)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W); in [0, 1] too, unless made in a normalised space."""
        if self.normalized_by is None:
            return self.augment(images)
        return self.normalized_by.denormalize(self.augment(self.normalized_by.normalize(images)))
