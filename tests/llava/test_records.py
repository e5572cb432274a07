"""LLaVA's JSON: what is read, and every fault named by its id."""

import json

import pytest

from dcr_hf.llava.records import read_records
from helpers.tiny_llava import turns


def write(folder, *records):
    file = folder / "data.json"
    file.write_text(json.dumps(records))
    return str(file)


def talk(number="t1", image="a.jpg", words=("<image>\nWhat?", "A cat.")):
    record = {"id": number, "image": image, "conversations": turns(*words)}
    return record if image is not None else {name: record[name] for name in ("id", "conversations")}


def test_conversations_with_and_without_image(tmp_path):
    three = talk("t3", words=("a <image> b", "c d e", "f", "g"))
    rows = read_records(
        write(tmp_path, talk(), talk(7, None, ("How many?", "Two or three.")), three),
        captions=False,
        max_bad_fraction=0.1,
    )
    assert rows.to_list() == [
        {"id": "t1", "image": "a.jpg", "questions": ["<image>\nWhat?"], "answers": ["A cat."], "length": 4},
        {"id": "7", "image": None, "questions": ["How many?"], "answers": ["Two or three."], "length": -5},
        {"id": "t3", "image": "a.jpg", "questions": ["<image>\na  b", "f"], "answers": ["c d e", "g"], "length": 8},
    ]


def test_captions_leave_out_what_was_asked(tmp_path):
    rows = read_records(write(tmp_path, talk(words=("Describe it.\n<image>", "a cat"))), True, 0.1)
    assert rows[0] == {"id": "t1", "image": "a.jpg", "questions": [], "answers": ["a cat"], "length": 5}


def test_an_answer_without_question_before_and_a_question_without_answer_behind_are_left_out(tmp_path):
    shared = {"id": "s", "conversations": [*turns("x", "lost")[1:], *turns("why?", "so.", "and?")]}
    (row,) = read_records(write(tmp_path, shared), False, 0.1)
    assert (row["questions"], row["answers"]) == (["why?"], ["so."])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (talk(words=("What?", "A cat.")), "an image, and no <image> in the questions"),
        (talk(words=("<image> or <image>?", "A cat.")), "2 <image>, where LLaVA-1.5 takes one"),
        (talk(words=("<image>", "a", "<image>", "b")), "2 <image>, where LLaVA-1.5 takes one"),
        (talk(image=["a.jpg", "b.jpg"]), "2 images, where LLaVA-1.5 takes one"),
        (
            talk(words=("<image>", "\ud83d broken")),
            "words with half of a surrogate pair ('\\ud83d')",
        ),
        (talk(image=7), "an image's name that is int"),
        ({"id": "t1", "conversations": [turns("a")[0], turns("b")[0]]}, "turn 1 is human's, out of order"),
        ({"id": "t1", "conversations": [*turns("a", "b"), turns("c", "d")[1]]}, "turn 2 is gpt's, out of order"),
        ({"id": "t1", "conversations": [{"from": "system", "value": "x"}]}, "a turn from 'system', neither"),
        ({"id": "t1", "conversations": [{"from": "human"}]}, "a turn without a value"),
        ({"id": "t1", "conversations": turns("only asked")}, "no answer"),
        ({"id": "t1"}, "no list of conversations"),
    ],
)
def test_a_fault_is_named_by_its_id(tmp_path, record, message):
    file = write(tmp_path, talk("good"), record)
    with pytest.raises(ValueError, match=r"1 of 2 conversations cannot be used") as error:
        read_records(file, False, 0.1)
    assert f"id 't1': {message}" in str(error.value)


def test_a_record_without_id_is_named_by_its_number(tmp_path):
    with pytest.raises(ValueError, match="number 1, without id: no list of conversations"):
        read_records(write(tmp_path, talk(), {}), False, 0.1)


def test_many_faults_are_counted_and_some_named(tmp_path):
    with pytest.raises(ValueError, match="7 of 8 conversations cannot be used") as error:
        read_records(write(tmp_path, talk("good"), *({"id": f"b{n}"} for n in range(7))), False, 0.1)
    assert "'b4'" in str(error.value) and "'b5'" not in str(error.value) and "and 2 more" in str(error.value)


def test_a_caption_has_one_image_and_one_answer(tmp_path):
    with pytest.raises(ValueError, match="not one image with one caption"):
        read_records(write(tmp_path, talk(words=("<image>", "a", "b", "c"))), True, 0.1)


@pytest.mark.parametrize(("content", "message"), [("{", "is no JSON"), ("{}", "found dict"), ("[]", "or nothing")])
def test_what_is_no_list_of_conversations(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(str(tmp_path / "data.json"), False, 0.1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_records(str(tmp_path / "other.json"), False, 0.1)


def test_a_few_bad_records_are_left_out_and_named(tmp_path, caplog):
    file = write(tmp_path, *(talk(f"t{n}") for n in range(9)), {"id": "bad"})
    rows = read_records(file, False, 0.1)
    assert rows["id"] == [f"t{n}" for n in range(9)]
    assert "1 of 10 conversations cannot be used and are left out. id 'bad': no list of" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 10 .* more than --max_bad_fraction 0\.05"):
        read_records(file, False, 0.05)


def test_image_is_a_word_in_a_talk_without_image_and_in_answers(tmp_path):
    records = [talk("a", None, ("An <image> tag?", "<image>")), talk("b", words=("<image>", "an <image>"))]
    rows = read_records(write(tmp_path, *records), False, 0.0)
    assert (rows["questions"], rows["answers"]) == ([["An <image> tag?"], ["<image>"]], [["<image>"], ["an <image>"]])


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "data.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([talk()]).encode())
    assert len(read_records(str(tmp_path / "data.json"), False, 0.0)) == 1
