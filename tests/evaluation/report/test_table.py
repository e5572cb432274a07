"""A table that is too wide for a page comes in parts, and nothing is lost or doubled."""

import pytest

from dcr_hf.evaluation.report.table import WIDEST, Row, Table


def table(sizes):
    groups = [(f"set{index}", size) for index, size in enumerate(sizes)]
    names = [f"{name}-{column}" for name, size in groups for column in range(size)]
    rows = [Row(label, [f"{label}:{name}" for name in names], source) for label, source in (("a", ""), ("b", "paper"))]
    return Table("linear_probe", "Linear probe", ["a note"], ["", *names], rows, groups)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([3] * 10, [4, 4, 2]),  # 12 columns each: a fifth set of three would be the fifteenth
        ([3, 3], [2]),
        ([WIDEST, 1], [1, 1]),
        ([WIDEST + 5, 2, 2], [1, 2]),  # a group is not divided
    ],
)
def test_it_is_divided_between_groups(sizes, expected):
    wide = table(sizes)
    parts = wide.parts
    assert [len(part.groups) for part in parts] == expected
    assert [group for part in parts for group in part.groups] == wide.groups
    assert [name for part in parts for name in part.header[1:]] == wide.header[1:]
    for index, row in enumerate(wide.rows):
        assert [cell for part in parts for cell in part.rows[index].cells] == row.cells
        assert {(part.rows[index].label, part.rows[index].source) for part in parts} == {(row.label, row.source)}
    for part in parts:
        assert len(part.header) == 1 + sum(count for _, count in part.groups) and part.header[0] == ""
        assert part.full_header[1] == f"{part.groups[0][0]} {part.header[1]}"


def test_without_groups_it_stays_as_it_is():
    wide = Table("", "Differences", [], ["", *"abcdefghijklmnopqrst"], [Row("x", [*"abcdefghijklmnopqrst"])])
    assert wide.parts == [wide]
