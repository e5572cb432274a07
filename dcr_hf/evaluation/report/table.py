"""A table with one row per encoder and columns in groups; several tables as results.md."""

from collections.abc import Sequence
from dataclasses import dataclass

NOISE = "≈"
DASH = "–"


@dataclass(frozen=True)
class Row:
    """A row; `source` says who published it, and is empty for measured rows."""

    label: str
    cells: list[str]
    source: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `benchmark` is empty for the table of differences.

    Attributes:
        header: the columns' names, first that of the labels; inside their groups, if there are any.
        groups: (name, number of columns) of each group, in order, without the labels' column; empty if the header
            suffices.
    """

    benchmark: str
    title: str
    notes: list[str]
    header: list[str]
    rows: list[Row]
    groups: Sequence[tuple[str, int]] = ()

    @property
    def starts(self) -> set[int]:
        """The cells of a row, counted from 0, that begin a group."""
        return {sum(count for _, count in self.groups[:index]) for index in range(len(self.groups))}

    @property
    def full_header(self) -> list[str]:
        """The columns' names with their groups'."""
        if not self.groups:
            return self.header
        groups = [name for name, count in self.groups for _ in range(count)]
        return ["", *(f"{group} {name}" for group, name in zip(groups, self.header[1:], strict=True))]


def markdown(tables: list[Table]) -> str:
    """The content of results.md."""
    lines = ["# Results", ""]
    for table in tables:
        lines += [f"## {table.title}", "", " ".join(table.notes), ""]
        lines += [markdown_line(table.full_header), markdown_line(["---"] * len(table.header))]
        for row in table.rows:
            label = f"*{row.label} ({row.source})*" if row.source else row.label
            lines.append(markdown_line([label, *row.cells]))
        lines.append("")
    return "\n".join(lines)


def markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
