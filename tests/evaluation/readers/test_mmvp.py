"""Questions.csv and its images: the published layout, and every way in which a copy may be broken."""

import csv

import pytest

from dcr_hf.evaluation.readers.mmvp import CATEGORIES, read_mmvp
from helpers.evaluation_layouts import write_mmvp


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_mmvp(tmp_path_factory.mktemp("data") / "MMVP_VLM")


@pytest.fixture
def rows(published):
    with (published / "Questions.csv").open(newline="") as file:
        return list(csv.reader(file))


def with_table(published, root, rows):
    """A copy with another table; images are the same files."""
    folder = root / "MMVP_VLM"
    folder.mkdir()
    (folder / "MLLM_VLM Images").symlink_to(published / "MLLM_VLM Images")
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_published_layout(published):
    data = read_mmvp("MMVP_VLM", None, published.parent)
    assert len(data.images) == 270 and len(data.pairs) == 135
    assert data.images.name(29) == "MLLM_VLM Images/Orientation and Direction/30.jpg"
    assert data.pairs[14].category == CATEGORIES[0] and data.pairs[15].category == CATEGORIES[1]
    assert data.pairs[7].statements == ("thing 15, seen", "thing 16, seen")
    assert data.pairs[7].question_ids == (15, 16) and data.pairs[7].truth == (0, 1)
    assert data.images.read(0)[:2] == b"\xff\xd8"


def test_both_images_come_from_the_first_row_s_type_and_the_category_from_the_position(published, rows, tmp_path):
    rows[2][1] = "Texts"  # the second row of the first pair
    data = read_mmvp("MMVP_VLM", None, with_table(published, tmp_path, rows))
    assert data.images.name(1) == "MLLM_VLM Images/Orientation and Direction/2.jpg"
    assert data.pairs[0].category == CATEGORIES[0]


def test_truth_follows_the_ids_not_the_order(published, rows, tmp_path):
    rows[1], rows[2] = rows[2], rows[1]
    data = read_mmvp("MMVP_VLM", None, with_table(published, tmp_path, rows))
    assert data.pairs[0].truth == (1, 0)
    assert data.images.name(0).endswith("/2.jpg")


def test_byte_order_mark_is_no_column(published, rows, tmp_path):
    root = with_table(published, tmp_path, rows)
    path = root / "MMVP_VLM" / "Questions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_mmvp("MMVP_VLM", None, root).pairs) == 135


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "269 rows, an odd number"),
        (lambda rows: [rows.pop(), rows.pop()], "134 pairs, which do not make nine equal categories"),
        (lambda rows: rows[0].__setitem__(2, "Text"), r"columns \['Question ID', 'Type', 'Text'\]"),
        (lambda rows: rows[5].pop(), "line 6 of .*Questions.csv"),
        (lambda rows: rows[5].__setitem__(0, "five"), "line 6 of .*Questions.csv"),
        (lambda rows: rows.__delitem__(slice(1, None)), "0 pairs"),
    ],
)
def test_broken_tables(published, rows, tmp_path, change, message):
    change(rows)
    with pytest.raises(ValueError, match=message):
        read_mmvp("MMVP_VLM", None, with_table(published, tmp_path, rows))


def test_missing_image_is_named(published, rows, tmp_path):
    rows[10][0] = "999"
    with pytest.raises(FileNotFoundError, match=r"1 of 270 images are missing.*Orientation and Direction/999.jpg"):
        read_mmvp("MMVP_VLM", None, with_table(published, tmp_path, rows))


def test_missing_table_states_the_layout(tmp_path):
    (tmp_path / "MMVP_VLM").mkdir()
    with pytest.raises(FileNotFoundError, match=r"lacks Questions.csv.*MLLM_VLM Images/<Type>/<Question ID>.jpg"):
        read_mmvp("MMVP_VLM", None, tmp_path)
