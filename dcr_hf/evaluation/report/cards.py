"""Changes between two models as the report shows them: images with texts, before and after."""

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
    """Two models' answers for one text and one image.

    Attributes:
        marked: True if the cell is highlighted as a right answer's.
        right: True if `after` is right; None if the cell is not scored.
        note: small text below both.
    """

    before: str
    after: str
    marked: bool = False
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Card:
    """A small table: columns are images (data URIs), rows are texts with one cell per image (None: not asked)."""

    tag: str
    note: str
    images: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


@dataclass(frozen=True)
class Group:
    """Cards under one heading: the first of `count`."""

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
    """Group changed items, given as (is right now, item), by heading."""
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
