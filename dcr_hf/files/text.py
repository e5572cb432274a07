"""Texts and tables that other programs wrote."""

import codecs
import csv
import io
from pathlib import Path

from dcr_hf.errors import UserError, as_user_error

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(who: str, path: Path) -> str:
    """A text in UTF-8, or in UTF-16 with the mark by which it is known.

    Raises:
        UserError: it is in neither, and in which line; or it cannot be read.
    """
    with as_user_error(f"{who}: {path}", OSError):
        content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(content[: error.start].splitlines()) or 1
        raise UserError(
            f"{who}: line {line} of {path} is not in UTF-8 (at byte {error.start}: {content[error.start :][:1]!r}). "
            "Save the file as UTF-8."
        ) from error


def read_table(who: str, path: Path) -> tuple[list[str], list[tuple[int, dict]]]:
    """The columns of a table of comma-separated values, and its rows as csv.DictReader gives them, each with its line.
    Empty rows are left out.

    Raises:
        UserError: as `read_text`; or no such table.
    """
    reader = csv.DictReader(io.StringIO(read_text(who, path), newline=""), skipinitialspace=True)
    with as_user_error(f"{who}: {path}", csv.Error):
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    return columns, [(line, row) for line, row in rows if any(value and str(value).strip() for value in row.values())]
