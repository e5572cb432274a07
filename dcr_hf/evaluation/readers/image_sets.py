"""Data sets: images by index, read on request, with labels, captions or paired statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np

from dcr_hf.errors import as_user_error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Images(Protocol):
    """Undecoded images by index."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of image `index` in messages and predictions."""

    def read(self, index: int) -> bytes: ...


@dataclass(frozen=True)
class FileImages:
    """Image files below a root."""

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> bytes:
        with as_user_error(self.paths[index], OSError):
            return (self.root / self.paths[index]).read_bytes()


@dataclass(frozen=True)
class ShardImages:
    """Images of webdataset shards, as a `datasets` table memory-mapped from disk."""

    table: datasets.Dataset

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return self.table[index]["__key__"]

    def read(self, index: int) -> bytes:
        return self.table[index]["image"]


@dataclass(frozen=True)
class JoinedImages:
    """Lists of images joined in order; an image's name begins with its part's."""

    parts: Mapping[str, Images]

    def __len__(self) -> int:
        return sum(len(images) for images in self.parts.values())

    def name(self, index: int) -> str:
        part, position = self._find(index)
        return f"{part}/{self.parts[part].name(position)}"

    def read(self, index: int) -> bytes:
        part, position = self._find(index)
        return self.parts[part].read(position)

    def _find(self, index: int) -> tuple[str, int]:
        position = index
        for part, images in self.parts.items():
            if position < len(images):
                return part, position
            position -= len(images)
        raise IndexError(f"image {index} of {len(self)}")


@dataclass(frozen=True)
class ImageSet:
    """Images of one data set; `revision` identifies the files they were read from, `split` which of them."""

    name: str
    images: Images
    source: str
    revision: str
    split: str = field(default="test", kw_only=True)

    @property
    def title(self) -> str:
        """The key of this list of images; each split of a data set has its own."""
        return self.name if self.split == "test" else f"{self.name} ({self.split})"


@dataclass(frozen=True)
class LabeledImages(ImageSet):
    """A set for clustering, zero-shot and linear probes. `class_names` may be empty if only clustering is run.

    The first `train_count` images are for training: 0 except for a linear probe, whose set holds both splits.
    """

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()
    train_count: int = 0


@dataclass(frozen=True)
class CaptionedImages(ImageSet):
    """A retrieval set: `captions[i]` are the right texts of image i."""

    captions: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Pair:
    """Two images (2k, 2k+1 of the set), two statements, and which image each statement is true of (0 or 1)."""

    category: str
    question_ids: tuple[int, int]
    statements: tuple[str, str]
    truth: tuple[int, int]


@dataclass(frozen=True)
class PairedImages(ImageSet):
    """MMVP-VLM's pairs of images."""

    pairs: Sequence[Pair] = ()
