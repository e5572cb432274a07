"""A data set in memory: images by index (on disk until asked for) with labels, captions or paired statements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class Images(Protocol):
    """Undecoded images by index."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What identifies image `index`, in messages and predictions."""

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
        return (self.root / self.paths[index]).read_bytes()


@dataclass(frozen=True)
class ShardImages:
    """Image members of webdataset shards, as a `datasets` table memory-mapped from disk."""

    table: datasets.Dataset
    columns: Sequence[str]
    """The image columns, one per file extension; each sample fills one of them."""

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return self.table[index]["__key__"]

    def read(self, index: int) -> bytes:
        sample = self.table[index]
        found = [sample[column]["bytes"] for column in self.columns if sample[column] is not None]
        if len(found) != 1:
            raise ValueError(f"sample {sample['__key__']} of {sample['__url__']} has {len(found)} images, not one.")
        return found[0]


@dataclass(frozen=True)
class ImageSet:
    """Images of one data set; `revision` identifies the files they were read from."""

    name: str
    images: Images
    source: str
    revision: str


@dataclass(frozen=True)
class LabeledImages(ImageSet):
    """For clustering and zero-shot. `class_names` may be empty where only clustering will be asked for."""

    labels: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()


@dataclass(frozen=True)
class CaptionedImages(ImageSet):
    """For retrieval: `captions[i]` are the right texts of image i."""

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
    """For MMVP-VLM."""

    pairs: Sequence[Pair] = ()
