"""Sources of training images: a value of --train_data -> what deals its epochs."""

import contextlib
import itertools
import json
import logging
import re
import tarfile
from glob import glob
from pathlib import Path

from dcr_hf.data.dealing import FileSource, Source
from dcr_hf.data.hub_sources import find_hub_source, training_shards
from dcr_hf.data.readers import IMAGE_EXTENSIONS, is_image_member
from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.files import files_below, is_debris
from dcr_hf.hub import fingerprint_of_files, hub_id

logger = logging.getLogger(__name__)


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
        shards = training_shards([str(path) for path in sorted(folder.glob("*.tar")) if not is_debris(path.name)])
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
        if Path(shard).is_file() and not Path(shard).stat().st_size:
            logger.warning(f"--train_data: shard {shard} is empty.")
            continue
        try:
            with as_user_error(f"shard {shard}", OSError), tarfile.open(shard, "r|") as tar:
                tar.next()
        except tarfile.TarError as error:
            raise UserError(
                f"shard {shard} is not an (uncompressed) tar file ({error}). Remove it or download it again."
            ) from error
    in_first = next((count for count in map(_count_images, shards) if count), 0)
    if not in_first:
        which = (
            f"shard {shards[0]} holds" if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more shards hold"
        )
        raise UserError(f"{which} no image: no member ends in one of {', '.join(IMAGE_EXTENSIONS)}.")
    images = _counted_images(shards) or in_first * len(shards)
    return FileSource(tuple(shards), images, fingerprint_of_files(map(Path, shards), "shards"))


def _counted_images(shards: list[str]) -> int | None:
    """By img2dataset's own counts beside the shards; None where one is missing or broken: they are hints."""
    total = 0
    for shard in shards:
        file = Path(shard.removesuffix(".tar") + "_stats.json")
        if not file.is_file():
            return None
        try:
            total += int(json.loads(file.read_text(encoding="utf-8-sig"))["successes"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning(
                f"--train_data: {file} is broken ({error}) and not used: the number of images is estimated."
            )
            return None
    return total


def _count_images(shard: str) -> int:
    """The number of images in a shard, by the headers alone; in a truncated one, those before its end."""
    count = 0
    with contextlib.suppress(tarfile.TarError), tarfile.open(shard, "r:") as tar:
        for member in tar:
            count += is_image_member(member)
    return count


def _image_folder_source(folder: Path) -> FileSource:
    files = sorted(map(str, files_below(folder, IMAGE_EXTENSIONS)))  # as text: checkpoints count on this order
    if not files:
        raise NotFoundError(
            f"--train_data {str(folder)!r} holds neither shards (*.tar) nor images ({', '.join(IMAGE_EXTENSIONS)})."
        )
    groups = tuple(tuple(files[start : start + 64]) for start in range(0, len(files), 64))
    return FileSource(groups, len(files), fingerprint_of_files(map(Path, files), "images", folder))
