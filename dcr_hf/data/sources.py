"""Sources of training images: a value of --train_data -> what deals its epochs."""

import contextlib
import itertools
import json
import re
import tarfile
from glob import glob
from pathlib import Path

from dcr_hf.data.dealing import FileSource, Source
from dcr_hf.data.hub_sources import find_hub_source
from dcr_hf.data.readers import IMAGE_EXTENSIONS
from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.hub import fingerprint_of_files, hub_id


def find_source(train_data: str, commit: str | None = None) -> Source:
    """The source that --train_data names, checked; reads only the beginning of each local shard.

    Args:
        commit: of a hub's data set, of an earlier start of the same run.

    Raises:
        NotFoundError: nothing matches.
        UserError: a shard that is not a tar, a folder or shard without images, a hub data set without an image column.
        UnavailableError: the hub does not answer.
    """
    folder = Path(train_data).expanduser()
    if folder.is_dir():
        shards = sorted(str(path) for path in folder.glob("*.tar"))
        return _shard_source(shards) if shards else _image_folder_source(folder)
    patterns = expand_braces(str(folder))
    if len(patterns) > 1 or any(character in train_data for character in "*?["):
        return _shard_source(_match(patterns, train_data))
    if folder.is_file():
        return _shard_source([str(folder)])
    if hub_id(train_data) is None:
        raise NotFoundError(
            f"--train_data {train_data!r}: no such file or folder, and no hub id of the form 'owner/name' or "
            "'owner/name@revision'."
        )
    return find_hub_source(train_data, commit)


def expand_braces(pattern: str) -> list[str]:
    """'{00000..00331}.tar' -> 332 names, zero-padded as written; '{a,b}.tar' -> two. Braces may follow each other."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    first, last, alternatives = match.groups()
    if alternatives is None:
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        values = alternatives.split(",")
    tails = expand_braces(pattern[match.end() :])
    return [pattern[: match.start()] + value + tail for value, tail in itertools.product(values, tails)]


def _match(patterns: list[str], train_data: str) -> list[str]:
    found = [path for pattern in patterns for path in sorted(glob(pattern))]
    missing = [pattern for pattern in patterns if not glob(pattern)]
    if not found:
        raise NotFoundError(f"--train_data {train_data!r} matches no file (the first tried: {patterns[0]}).")
    if missing:
        raise NotFoundError(
            f"--train_data {train_data!r}: {len(missing)} of {len(patterns)} shards are missing, the first is "
            f"{missing[0]}. Correct the range, or use a glob to take the existing ones."
        )
    return found


def _shard_source(shards: list[str]) -> FileSource:
    for shard in shards:
        try:
            with as_user_error(f"shard {shard}", OSError), tarfile.open(shard, "r|") as tar:
                tar.next()
        except tarfile.TarError as error:
            raise UserError(
                f"shard {shard} is not an (uncompressed) tar file ({error}). Remove it or download it again."
            ) from error
    in_first = _count_images(shards[0])
    if not in_first:
        raise UserError(f"shard {shards[0]} holds no image: no member ends in one of {', '.join(IMAGE_EXTENSIONS)}.")
    statistics = [Path(shard.removesuffix(".tar") + "_stats.json") for shard in shards]
    if all(path.is_file() for path in statistics):  # img2dataset's own counts
        images = sum(map(_counted_images, statistics))
    else:
        images = in_first * len(shards)
    return FileSource(tuple(shards), images, fingerprint_of_files(map(Path, shards), "shards"))


def _counted_images(statistics: Path) -> int:
    with as_user_error(f"--train_data: {statistics}", OSError, ValueError, LookupError, TypeError):
        return int(json.loads(statistics.read_text())["successes"])


def _count_images(shard: str) -> int:
    """The number of images in a shard, by the headers alone; in a truncated one, those before its end."""
    count = 0
    with contextlib.suppress(tarfile.TarError), tarfile.open(shard, "r:") as tar:
        for member in tar:
            count += member.isfile() and Path(member.name).suffix.lower() in IMAGE_EXTENSIONS
    return count


def _image_folder_source(folder: Path) -> FileSource:
    files = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not files:
        raise NotFoundError(
            f"--train_data {str(folder)!r} holds neither shards (*.tar) nor images ({', '.join(IMAGE_EXTENSIONS)})."
        )
    groups = tuple(tuple(files[start : start + 64]) for start in range(0, len(files), 64))
    return FileSource(groups, len(files), fingerprint_of_files(map(Path, files), "images", folder))
