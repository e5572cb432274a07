"""How far the encoder has come from where it began, on a few fixed images."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from dcr_hf.hub import from_one_process
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.results import FIXED_IMAGES

logger = logging.getLogger(__name__)

COUNT = 16


class Moved:
    """The mean cosine distance of embeddings to those before training, on the first images of rank 0's first batch.

    Without it nobody sees that a budget was too small to change anything. Images and embeddings stay in the stage's
    folder, for a run that resumes. Every rank must call, since a strategy may have divided the weights over them.

    Args:
        folder: the stage's.
    """

    def __init__(self, folder: Path):
        self.file = folder / FIXED_IMAGES
        self._images: Tensor | None = None
        self._before: Tensor | None = None

    @property
    def has_begun(self) -> bool:
        return self._images is not None

    def begin(self, encoder: ImageEncoder, images: Tensor, is_new: bool, rank: int) -> None:
        """Choose from (B, 3, H, W) in [0, 1], or take what an earlier start of the run chose. To be called once.

        Args:
            is_new: nothing is trained yet, so that `encoder` is the original.
        """
        pixels = (images[:COUNT] * 255).round().byte().cpu()
        chosen = from_one_process(lambda: {"images": pixels} if is_new else self._read())
        if not chosen:
            logger.warning("%s is not there: how far the encoder has moved is not logged.", self.file)
        self._images = chosen.get("images", pixels).to(images.device) / 255
        if is_new:
            self._before = _embed(encoder, self._images)
            if rank == 0:
                self._write({**chosen, "embeddings": self._before})
        elif chosen:
            self._before = chosen["embeddings"]

    def distance(self, encoder: ImageEncoder) -> float | None:
        """1 - cosine, the mean over the images; None if they are not known."""
        if self._images is None or self._before is None:
            return None
        return (1 - F.cosine_similarity(_embed(encoder, self._images), self._before, dim=-1)).mean().item()

    def _read(self) -> dict[str, Tensor]:
        return load_file(self.file) if self.file.is_file() else {}

    def _write(self, content: dict[str, Tensor]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f".{self.file.name}")
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, partial)
        partial.replace(self.file)


@torch.no_grad()
def _embed(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """z (K, D) in eval mode, float64, on the CPU."""
    training = encoder.training
    embeddings = encoder.eval()(images)
    encoder.train(training)
    return embeddings.cpu().double()
