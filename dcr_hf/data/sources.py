"""Sources of training images: a value of --train_data -> HF `datasets` streams of encoded images."""

import contextlib
import itertools
import json
import re
import tarfile
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetsError
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from dcr_hf.data.readers import FEATURES, IMAGE_EXTENSIONS, PLACE, read_pieces
from dcr_hf.errors import NotFoundError, UserError, as_user_error


@dataclass(frozen=True)
class FileSource:
    """Webdataset shards, or loose image files in groups.

    Attributes:
        units: paths or URLs of shards; or, for loose files, lists of paths.
        images: the approximate number of images, by img2dataset's statistics, else by the first shard; None if
            unknown.
    """

    units: tuple[str | tuple[str, ...], ...]
    images: int | None

    def epoch(
        self, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> datasets.IterableDataset:
        """One of `lanes` shares of an epoch, from its beginning or from the token of an earlier block.

        Each epoch deals the units out in another order. If there are fewer units than lanes, several lanes share each
        unit."""
        parts = -(-lanes // len(self.units))
        pieces = [(unit, part, parts) for unit in self.units for part in range(parts)]
        order = np.random.default_rng([seed, epoch]).permutation(len(pieces))
        mine = tuple(pieces[index] for index in order[lane::lanes])
        start = token or dict.fromkeys(PLACE, 0)
        return datasets.IterableDataset.from_generator(
            read_pieces, features=FEATURES, gen_kwargs={"pieces": mine, **start}
        )

    def token(self, dataset: datasets.IterableDataset, block: dict[str, list]) -> dict:
        """The position of the first row after this block."""
        return {name: block[name][-1] for name in PLACE}


@dataclass(frozen=True)
class TableSource:
    """Any other streamed HF data set with an image column; attributes as `FileSource`."""

    dataset: datasets.IterableDataset
    images: int | None

    def epoch(
        self, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> datasets.IterableDataset:
        """One of `lanes` shares of an epoch, its shards in random order, from its beginning or a token."""
        epoch_seed = int(np.random.default_rng([seed, epoch]).integers(2**31))
        # A buffer of one: shuffles the shards alone; the reader shuffles the images.
        dataset = split_dataset_by_node(self.dataset.shuffle(epoch_seed, buffer_size=1), lane, lanes)
        if token is not None:
            dataset.load_state_dict(token)
        return dataset

    def token(self, dataset: datasets.IterableDataset, block: dict[str, list]) -> dict:
        """The data set's own state after the rows that were read."""
        return dataset.state_dict()


Source = FileSource | TableSource


def find_source(train_data: str) -> Source:
    """The source that --train_data names, checked; reads only the beginning of each local shard.

    Raises:
        NotFoundError: nothing matches.
        UserError: a shard that is not a tar, a folder or shard without images, a hub data set without an image column.
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
    if train_data.count("/") != 1 or train_data.startswith((".", "/", "~")):
        raise NotFoundError(
            f"--train_data {train_data!r}: no such file or folder, and no hub id of the form 'owner/name'."
        )
    return _hub_source(train_data)


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
        return FileSource(tuple(shards), sum(map(_counted_images, statistics)))
    return FileSource(tuple(shards), in_first * len(shards))


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
    return FileSource(groups, len(files))


def _hub_source(repository: str) -> Source:
    with as_user_error(f"--train_data {repository!r} on the hub", OSError, HfHubHTTPError, DatasetsError):
        shards = [f"hf://{path}" for path in sorted(HfFileSystem().glob(f"datasets/{repository}/**/*.tar"))]
        if shards:
            training = [shard for shard in shards if re.search(r"train", Path(shard).name + Path(shard).parent.name)]
            return FileSource(tuple(training or shards), None)
        table = datasets.load_dataset(repository, split="train", streaming=True)
    columns = [name for name, feature in (table.features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise UserError(f"--train_data {repository!r}: the data set has no image column, only {table.column_names}.")
    split = table.info.splits["train"] if table.info.splits else None
    return TableSource(table_rows(table, columns[0]), split.num_examples if split else None)


def table_rows(table: datasets.IterableDataset, image: str) -> datasets.IterableDataset:
    """Rows of FEATURES for a streamed data set whose column `image` holds encoded images."""
    return table.cast_column(image, datasets.Image(decode=False)).map(
        _table_row, with_indices=True, fn_kwargs={"image": image}, remove_columns=table.column_names, features=FEATURES
    )


def _table_row(row: dict, index: int, image: str) -> dict:
    content = row[image]["bytes"] if row[image] else None
    return {"key": str(index), "image": content or b"", "error": None, **dict.fromkeys(PLACE, 0)}
