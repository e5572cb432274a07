"""A data set of the hub as a source: its shards, or its table, at one commit."""

import contextlib
import json
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from dcr_hf.data.dealing import FileSource, Source, TableSource
from dcr_hf.data.readers import FEATURES, PLACE
from dcr_hf.errors import UserError, as_user_error
from dcr_hf.hub import Pin, address, fetch, patiently, pin


def find_hub_source(train_data: str, commit: str | None) -> Source:
    """The source of a hub id, at its revision's commit or at `commit`. Raises as `sources.find_source`."""
    found = pin("--train_data", train_data, "dataset", commit)
    shards = sorted(name for name in found.files if name.endswith(".tar"))
    if shards:
        return _remote_shards(found, training_shards(shards), train_data)
    return _table(found, train_data)


def training_shards(shards: list[str]) -> list[str]:
    """Those that their names or folders say are for training, where any does; else all."""
    by_name = [name for name in shards if "train" in Path(name).name]
    return by_name or [name for name in shards if "train" in Path(name).parent.name] or shards


def _remote_shards(found: Pin, shards: list[str], given: str) -> FileSource:
    """Shards that the cache holds are read there."""
    here = {name: found.folder / name for name in shards}
    units = tuple(str(here[name]) if here[name].is_file() else address(found, name) for name in shards)
    return FileSource(units, _declared_images(found, given), found.commit, on_hub=True)


def _declared_images(found: Pin, given: str) -> int | None:
    """By _info.json, which data sets in webdataset's layout have: {"splits": {"train": {"num_samples": 2905954}}}."""
    if "_info.json" not in found.files:
        return None
    fetch(found, ["_info.json"], "--train_data", given)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return int(
            json.loads((found.folder / "_info.json").read_text(encoding="utf-8"))["splits"]["train"]["num_samples"]
        )
    return None


def _table(found: Pin, given: str) -> TableSource:
    who = f"--train_data {given!r}"
    is_here = all((found.folder / name).is_file() for name in found.files)
    where = {"path": str(found.folder)} if is_here else {"path": found.repository, "revision": found.commit}
    with as_user_error(f"{who} on the hub", ValueError, FileNotFoundError, DatasetsError):
        table = patiently(who, lambda: datasets.load_dataset(**where, split="train", streaming=True))
    columns = [name for name, feature in (table.features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise UserError(f"{who}: the data set has no image column, only {table.column_names}.")
    split = table.info.splits["train"] if table.info.splits else None
    return TableSource(table_rows(table, columns[0]), split.num_examples if split else None, found.commit, given)


def table_rows(table: datasets.IterableDataset, image: str) -> datasets.IterableDataset:
    """Rows of FEATURES for a streamed data set whose column `image` holds encoded images."""
    return table.cast_column(image, datasets.Image(decode=False)).map(
        _table_row, with_indices=True, fn_kwargs={"image": image}, remove_columns=table.column_names, features=FEATURES
    )


def _table_row(row: dict, index: int, image: str) -> dict:
    content = row[image]["bytes"] if row[image] else None
    return {"key": str(index), "image": content or b"", "error": None, **dict.fromkeys(PLACE, 0)}
