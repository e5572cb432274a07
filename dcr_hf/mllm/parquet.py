"""A hub data set's parquet files as a table: columns are checked per file, images stay encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from accelerate import PartialState
from pyarrow import parquet

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.evaluation.readers.decode import ImageError


@dataclass(frozen=True)
class ParquetImages:
    """The image columns of a table, row by row: image `index` is in row index // columns."""

    columns: Sequence[datasets.Dataset]
    names: Sequence[str]
    title: str

    def __len__(self) -> int:
        return sum(len(column) for column in self.columns)

    def name(self, index: int) -> str:
        row, column = divmod(index, len(self.columns))
        return f"{self.title} {row} {self.names[column]}"

    def read(self, index: int) -> bytes:
        row, column = divmod(index, len(self.columns))
        content = self.columns[column][row][self.names[column]]
        if content is None or content["bytes"] is None:
            raise ImageError(f"{self.name(index)}: the parquet file holds no bytes of this image. Fetch it again.")
        return content["bytes"]


def read_parquet(
    title: str, folder: Path, pattern: str, columns: Sequence[str], images: Sequence[str], spellings: Mapping[str, str]
) -> tuple[list[dict], ParquetImages]:
    """Read rows of `columns`, and the images of the columns `images`, from all files below the folder, by path.

    Args:
        spellings: a column's name in other revisions -> its name here.

    Raises:
        NotFoundError: no such files.
        UserError: a file lacks columns or is damaged; the message names it.
    """
    files = sorted(folder.rglob(pattern))
    if not files:
        raise NotFoundError(
            f"{title}: {folder} holds no {pattern}. Expected are the hub's parquet files with the columns "
            f"{', '.join((*columns, *images))}."
        )
    tables = [_table(title, file, columns, images, spellings) for file in files]
    table = datasets.concatenate_datasets(tables)
    rows = table.select_columns(list(columns)).to_list()
    return rows, ParquetImages([table.select_columns(name) for name in images], images, title)


def _table(
    title: str, file: Path, columns: Sequence[str], images: Sequence[str], spellings: Mapping[str, str]
) -> datasets.Dataset:
    wanted = (*columns, *images)
    try:
        header = parquet.read_schema(file).names
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{title}: {file} is not a complete parquet file: {error} Fetch it again.") from None
    found = {spellings.get(name, name): name for name in header}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{title}: {file} lacks {', '.join(missing)}; it has the columns {', '.join(header)}.")
    damage = (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowInvalid)
    # Converted once, then memory-mapped from the `datasets` cache.
    with as_user_error(f"{title}: {file}", *damage), PartialState().main_process_first():
        table = datasets.Dataset.from_parquet(str(file), columns=[found[name] for name in wanted])
    table = table.rename_columns({found[name]: name for name in wanted if found[name] != name})
    for name in images:  # keep bytes: the workers decode, with our limits
        table = table.cast_column(name, datasets.Image(decode=False))
    return table
