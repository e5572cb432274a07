"""Texts and tables of other programs: read, or one line that names the file and the line."""

import pytest

from dcr_hf.errors import UserError
from dcr_hf.files import read_table, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_are_known_by_their_mark(tmp_path, encoding):
    (tmp_path / "names.txt").write_bytes("café\r\nstraße\n".encode(encoding))
    assert read_text("names", tmp_path / "names.txt") == "café\r\nstraße\n"


def test_another_code_page_is_named_with_its_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("cat\ndog\ncafé\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"names: line 3 of .*names\.txt is not in UTF-8 \(at byte 11: b'\\xe9'\)"):
        read_text("names", file)
    with pytest.raises(UserError, match=r"none\.txt"):
        read_text("names", tmp_path / "none.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_with_blank_rows_and_any_line_end(tmp_path, end):
    rows = ["Question ID, Type ,Statement", '1,a,"one, two"', ",,", "", '2,b,"and""so"', ",,", ""]
    (tmp_path / "t.csv").write_bytes(end.join(rows).encode("utf-8-sig"))
    columns, read = read_table("table", tmp_path / "t.csv")
    assert columns == ["Question ID", "Type", "Statement"]
    assert [list(row.values()) for _, row in read] == [["1", "a", "one, two"], ["2", "b", 'and"so']]
    assert [line for line, _ in read] == [2, 5]
