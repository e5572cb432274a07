"""The published layouts are read as they are; what is missing or broken is named."""

import csv
import re

import datasets
import pytest

from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.mllm.benchmarks import read_benchmarks
from helpers.images import encoded, photographs
from helpers.mllm_layouts import (
    CV_ROWS,
    cv_bench_row,
    naturalbench_rows,
    write_cv_bench,
    write_mmvp_questions,
    write_naturalbench,
    write_parquet,
)


def read(name, root):
    return read_benchmarks([name], root)[name]


def rewrite(folder, change):
    """Questions.csv with its rows, header included, changed in place by `change`."""
    path = folder / "Questions.csv"
    rows = list(csv.reader(path.open(newline="")))
    change(rows)
    csv.writer(path.open("w", newline="")).writerows(rows)


@pytest.mark.parametrize("first", ["Index", "lndex"])
def test_mmvp(tmp_path, first):
    write_mmvp_questions(tmp_path / "MMVP", header=[first, "Question", "Options", "Correct Answer"])
    data = read("mmvp", tmp_path)
    assert len(data.questions) == len(data.images) == 300
    question = data.questions[3]
    assert question.item == "4" and data.images.name(question.image) == "MMVP Images/4.jpg"
    assert question.prompt == (
        "Is thing 2, seen from here, open or closed? (a) Open (b) Closed\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert question.facts["options"] == {"a": "Open", "b": "Closed"}
    assert question.facts["answer"] == "b" and question.facts["group"] == "questions 3-4"


def test_mmvps_two_wrong_pairs_are_corrected_and_no_other(tmp_path):
    write_mmvp_questions(tmp_path / "MMVP")
    questions = read("mmvp", tmp_path).questions
    changed = [each.item for each in questions if each.facts["answer"] != each.facts["corrected"]]
    assert changed == ["99", "100", "279", "280"]
    assert [questions[98].facts[key] for key in ("answer", "corrected")] == ["a", "b"]


def test_what_was_corrected_in_the_file_is_not_swapped_again(tmp_path):
    def correct(rows):
        rows[99][3], rows[100][3] = "(b)", "(a)"

    rewrite(write_mmvp_questions(tmp_path / "MMVP"), correct)
    questions = read("mmvp", tmp_path).questions
    assert [each.item for each in questions if each.facts["answer"] != each.facts["corrected"]] == ["279", "280"]
    assert questions[98].facts["corrected"] == "b"


def replace(line, column, text):
    return lambda rows: rows[line].__setitem__(column, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace(0, 2, "Choices"), r"Questions.csv lacks Options; it has the columns Index, Question, Choices, Corr"),
        (replace(3, 0, "7"), r"row 3 of .*Questions.csv is not '3,Question,Options,\(letter\)'"),
        (replace(3, 2, "open or closed"), r"row 3 of .* has the options 'open or closed' and the answer '\(a\)'"),
        (replace(4, 3, "(c)"), r"row 4 of .* and the answer '\(c\)'; expected '\(a\) one"),
        (lambda rows: rows[2].pop(), r"row 2 of .*Questions.csv is not"),
        (lambda rows: rows.pop(), r"has 5 rows; rows are read in twos"),
        (lambda rows: rows.clear(), r"lacks Index, Question, Options, Correct Answer"),
    ],
)
def test_broken_mmvp(tmp_path, change, message):
    rewrite(write_mmvp_questions(tmp_path / "MMVP", pairs=3), change)
    with pytest.raises(ValueError, match=message):
        read("mmvp", tmp_path)


def test_mmvp_with_holes(tmp_path):
    folder = write_mmvp_questions(tmp_path / "MMVP", pairs=3)
    for number in (2, 5):
        (folder / "MMVP Images" / f"{number}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 6 images are missing, the first is .*MMVP Images/2.jpg"):
        read("mmvp", tmp_path)
    (folder / "Questions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"MMVP lacks Questions.csv"):
        read("mmvp", tmp_path)


def test_naturalbench(tmp_path):
    write_naturalbench(tmp_path / "NaturalBench", count=6, shards=2)
    data = read("naturalbench", tmp_path)
    assert len(data.questions) == 24 and len(data.images) == 12
    group = data.questions[20:24]  # of the second file, a multiple choice
    assert [each.facts["answer"] for each in group] == ["A", "B", "B", "A"]
    assert [each.image for each in group] == [10, 11, 10, 11]
    assert group[3].item == "5/question 1/image 1"
    assert group[3].prompt.endswith(
        "upside down? Option: A: left; B: right; Please output the letter corresponding to the correct option."
    )
    assert data.questions[0].prompt == "Is thing 0 upright? Please answer Yes or No."
    row = naturalbench_rows(6)[5]
    assert data.images.read(10) == row["Image_0"]["bytes"] and data.images.read(11) == row["Image_1"]["bytes"]
    assert data.images.name(11) == "NaturalBench 5 Image_1"


def test_naturalbench_of_an_older_revision(tmp_path):
    rows = [
        {("Question Type" if key == "Question_Type" else key): value for key, value in row.items()}
        for row in naturalbench_rows(2)
    ]
    write_parquet(tmp_path / "naturalbench" / "a.parquet", rows, ("Image_0", "Image_1"))
    write_parquet(
        tmp_path / "naturalbench" / "b.parquet", naturalbench_rows(2), ()
    )  # plain structs, no `datasets` type
    data = read("naturalbench", tmp_path)
    assert len(data.questions) == 16 and data.images.read(0) == data.images.read(4)


def test_naturalbench_answers_that_contradict_its_rule_are_reported(tmp_path, caplog):
    rows = naturalbench_rows(2)
    rows[1]["Image_1_Question_0"] = "Yes"
    write_parquet(tmp_path / "NaturalBench" / "all.parquet", rows, ("Image_0", "Image_1"))
    assert read("naturalbench", tmp_path).questions[5].facts["answer"] == "No"
    assert "answers to 1 of 8 questions differ from the benchmark's rule" in caplog.text
    assert "the first is 1/question 0/image 1" in caplog.text


def test_cv_bench(tmp_path):
    write_cv_bench(tmp_path / "CV-Bench")
    data = read("cv_bench", tmp_path)
    assert len(data.questions) == len(CV_ROWS)
    question = data.questions[2]
    assert question.prompt == (
        "How is thing 2 in the image? Select from the following choices.\n(A) 2\n(B) 3\n(C) 4\n(D) 5\n(E) 6\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert question.facts["options"]["E"] == "6" and question.facts["answer"] == "E"
    shown = decode_image(data.images.read(2), data.images.name(2))
    assert list(shown.getdata()) == list(photographs(3, side=32)[-1].getdata())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "(C)"}, r"row 0 of .* \(idx 0\) has the choices \['left', 'right'\], the answer '\(C\)'"),
        ({"source": "Cityscapes"}, r"and the source 'Cityscapes'; expected .* ADE20K, COCO, Omni3D"),
        ({"choices": []}, r"has the choices \[\]"),
        ({"idx": 1}, r"share an idx. Are there two copies"),
    ],
)
def test_broken_cv_bench(tmp_path, change, message):
    rows = [
        cv_bench_row(place, source, "Depth", ["left", "right"], "A")
        for place, source in enumerate(("ADE20K", "COCO", "COCO", "Omni3D"))
    ]
    write_parquet(tmp_path / "CV-Bench" / "test.parquet", [rows[0] | change, *rows[1:]], ("image",))
    with pytest.raises(ValueError, match=message):
        read("cv_bench", tmp_path)


def test_half_of_cv_bench_is_none(tmp_path):
    (write_cv_bench(tmp_path / "CV-Bench") / "test_3d.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no row of Omni3D, .* are both test_2d.parquet and test_3d.parquet"):
        read("cv_bench", tmp_path)


@pytest.mark.parametrize(("name", "images"), [("naturalbench", ("Image_0", "Image_1")), ("cv_bench", ("image",))])
def test_parquet_without_a_column_is_named(tmp_path, name, images):
    rows = naturalbench_rows(2) if name == "naturalbench" else [cv_bench_row(0, "COCO", "Count", ["1", "2"], "A")]
    lacking = "Image_1_Question_0" if name == "naturalbench" else "prompt"
    for row in rows:
        del row[lacking]
    path = write_parquet(tmp_path / name / "test_1.parquet", rows, images)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} lacks {lacking}; it has the columns .*uestion"):
        read(name, tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"test_1.parquet is not a complete parquet file"):
        read(name, tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no .*parquet. Expected are the hub's parquet files with the"):
        read(name, tmp_path)


def test_an_image_without_bytes_is_named(tmp_path):
    rows = naturalbench_rows(2)
    rows[1]["Image_1"] = {"bytes": None, "path": "elsewhere.jpg"}
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "NaturalBench").mkdir()
    table.to_parquet(tmp_path / "NaturalBench" / "all.parquet")
    data = read("naturalbench", tmp_path)
    assert data.images.read(2) == encoded(photographs(2, side=32)[1])
    with pytest.raises(ValueError, match=r"NaturalBench 1 Image_1: the parquet file holds no bytes"):
        data.images.read(3)


def test_another_size_than_the_published_is_reported(tmp_path, caplog):
    write_mmvp_questions(tmp_path / "MMVP", pairs=3)
    read("mmvp", tmp_path)
    assert re.search(r"MMVP: .*Questions.csv has 6 rows, published are 300", caplog.text)


def test_unknown_benchmark_and_no_data(tmp_path):
    with pytest.raises(ValueError, match=r"unknown benchmark 'mme'; known: mmvp, naturalbench, cv_bench"):
        read("mme", tmp_path)
