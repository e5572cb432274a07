"""Encoded images out of shards and files, from any place on."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import fsspec

from dcr_hf.errors import as_user_error

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# One row an image: its bytes, or why there are none; and where the row behind it begins, for files only.
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


def read_pieces(pieces: tuple, piece: int, offset: int, count: int) -> Iterator[dict]:
    """Rows of FEATURES for pieces (unit, part, parts): the unit's images whose number is `part` modulo `parts`.

    Args:
        pieces: what to read, in order.
        piece, offset, count: where to begin: the piece, the place in it (a byte of a shard, a number of a list) and
            how many of its images lie before. What lies before is not read.
    """
    for index in range(piece, len(pieces)):
        unit, part, parts = pieces[index]
        read = read_shard if isinstance(unit, str) else read_files
        for row in read(unit, part, parts, offset, count):
            yield {"piece": index, **row} if row["error"] is None else {**row, "piece": index + 1}
        offset = count = 0


def read_files(paths: tuple[str, ...], part: int, parts: int, offset: int = 0, count: int = 0) -> Iterator[dict]:
    for number in range(offset, len(paths)):
        if number % parts == part:
            with as_user_error("--train_data", OSError):
                content = Path(paths[number]).read_bytes()
            yield {"key": paths[number], "image": content, "error": None, "offset": number + 1, "count": number + 1}


class _CompleteTarInfo(tarfile.TarInfo):
    """`tarfile` takes a missing, cut or broken header behind the first member for the end of the archive. Here only
    the marker that tar writes is its end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            raise tarfile.ReadError(f"no end of archive ({error})") from error


def read_shard(url: str, part: int, parts: int, offset: int = 0, count: int = 0) -> Iterator[dict]:
    """The images of a tar from byte `offset` on, before which lie `count` images. A tar that ends in the middle gives
    its whole members and one error."""
    try:
        with as_user_error(f"shard {url}", OSError), fsspec.open(url, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_CompleteTarInfo) as tar:
                for member in tar:
                    name = Path(member.name)
                    if not member.isfile() or name.suffix.lower() not in IMAGE_EXTENSIONS:
                        continue
                    count += 1
                    if (count - 1) % parts == part:
                        behind = offset + member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        content = tar.extractfile(member).read()
                        key = str(name.with_suffix(""))
                        yield {"key": key, "image": content, "error": None, "offset": behind, "count": count}
    except tarfile.TarError:
        if part:  # several readers of one shard see the same end; one of them counts it
            return
        yield {"key": url, "image": None, "error": "shard ends in the middle", "offset": 0, "count": 0}
