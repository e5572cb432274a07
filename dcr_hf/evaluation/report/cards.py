"""What changed between two models, as the report shows it: pictures, texts below them, before and after."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.image_sets import Images

SHOWN_CARDS = 60
THUMBNAIL = 200  # pixels, the longer side
Item = TypeVar("Item")


@dataclass(frozen=True)
class Cell:
    """What two models said about one text and one image.

    Attributes:
        marked: whether the cell is drawn as a right answer's place.
        right: whether `after` is right; None where nothing is to be right.
        note: below both, small.
    """

    before: str
    after: str
    marked: bool = False
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Card:
    """A small table: its columns are images (data URIs), its rows texts with a cell an image (None: not asked)."""

    tag: str
    note: str
    images: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


@dataclass(frozen=True)
class Group:
    """Cards under one heading, of which `count` exist: as many as are shown, or fewer, are made."""

    title: str
    count: int
    cards: Sequence[Card]


@dataclass(frozen=True)
class Changes:
    """A section of the report."""

    title: str
    note: str
    groups: Sequence[Group]


def by_direction(moved: Sequence[tuple[bool, Item]]) -> Mapping[str, list[Item]]:
    """(right now, item) of what changed, by heading."""
    return {
        title: [item for is_right, item in moved if is_right is right]
        for title, right in (("From wrong to right", True), ("From right to wrong", False))
    }


def small_copy(images: Images, index: int) -> bytes:
    """JPEG, THUMBNAIL pixels at most."""
    image = decode_image(images.read(index), images.name(index))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
