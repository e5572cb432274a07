"""A table with one row per encoder and columns in groups; several tables as results.md."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

WIDEST = 14  # columns of numbers side by side on a page
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
    def parts(self) -> list["Table"]:
        """The table in parts that a page is wide enough for, divided between groups: every row, some columns."""
        parts: list[Table] = []
        first, taken = 0, []
        for index, (name, count) in enumerate(self.groups):
            taken.append((name, count))
            width = sum(count for _, count in taken)
            last = index == len(self.groups) - 1
            if last or width + self.groups[index + 1][1] > WIDEST:
                columns = slice(first, first + width)
                rows = [replace(row, cells=row.cells[columns]) for row in self.rows]
                header = [self.header[0], *self.header[1:][columns]]
                parts.append(replace(self, header=header, rows=rows, groups=taken))
                first, taken = first + width, []
        return parts or [self]

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
