"""Encoded images from shards and files, starting at any position."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import datasets

from dcr_hf.errors import as_user_error
from dcr_hf.files import is_debris
from dcr_hf.hub import open_file

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# One row an image: its bytes, or the reason for their absence; for files also where the next row begins.
FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "image": datasets.Value("binary"),
        "error": datasets.Value("string"),
        "piece": datasets.Value("int64"),
        "offset": datasets.Value("int64"),
        "count": datasets.Value("int64"),
    }
)
PLACE = ("piece", "offset", "count")
_BROKEN_HEADERS = (
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]  # typeshed lacks these three
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
)


def read_pieces(pieces: tuple, piece: int, offset: int, count: int) -> Iterator[dict]:
    """Rows of FEATURES for pieces (unit, part, parts): the unit's images whose number is `part` modulo `parts`.

    Args:
        pieces: what to read, in order.
        piece, offset, count: where to begin: the piece, the offset in it (a byte of a shard, an index of a list) and
            the number of its images before that. Nothing before it is read.
    """
    for index in range(piece, len(pieces)):
        unit, part, parts = pieces[index]
        read = read_shard if isinstance(unit, str) else read_files
        for row in read(unit, part, parts, offset, count):
            ended = row["error"] is not None and isinstance(unit, str)  # a shard, by an error
            yield {**row, "piece": index + ended}
        offset = count = 0


def read_files(paths: tuple[str, ...], part: int, parts: int, offset: int = 0, count: int = 0) -> Iterator[dict]:
    """Rows of the files from index `offset`, those whose index is `part` modulo `parts`."""
    for number in range(offset, len(paths)):
        if number % parts == part:
            content, reason = None, None
            try:
                content = Path(paths[number]).read_bytes()
            except OSError as error:  # a link to nothing, no permission: like any other image that cannot be used
                reason = f"cannot be opened ({error.strerror})"
            yield {"key": paths[number], "image": content, "error": reason, "offset": number + 1, "count": number + 1}


def is_image_member(member: tarfile.TarInfo) -> bool:
    """True for an image of an archive that is data."""
    return member.isfile() and Path(member.name).suffix.lower() in IMAGE_EXTENSIONS and not is_debris(member.name)


class _CompleteTarInfo(tarfile.TarInfo):
    """Ends an archive only at tar's own end marker. `tarfile` also ends it at a missing, cut or broken header
    after the first member."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except _BROKEN_HEADERS as error:
            raise tarfile.ReadError(f"no end of archive ({error})") from error


def read_shard(url: str, part: int, parts: int, offset: int = 0, count: int = 0) -> Iterator[dict]:
    """Rows of a tar's images from byte `offset`, which `count` images precede. A truncated tar yields its complete
    members and one error."""
    try:
        with open_file(url, offset) as file, as_user_error(f"shard {url}", OSError):
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_CompleteTarInfo) as tar:
                for member in tar:
                    if not is_image_member(member):
                        continue
                    name = Path(member.name)
                    count += 1
                    if (count - 1) % parts == part:
                        end = offset + member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        member_file = tar.extractfile(member)
                        assert member_file is not None  # a regular file
                        key = str(name.with_suffix(""))
                        yield {"key": key, "image": member_file.read(), "error": None, "offset": end, "count": count}
    except tarfile.TarError:
        if part:  # several readers of one shard find the same end; one of them counts it
            return
        yield {"key": url, "image": None, "error": "shard ends in the middle", "offset": 0, "count": 0}
