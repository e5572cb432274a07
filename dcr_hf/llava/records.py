"""LLaVA's JSON of conversations: read, and every fault named by its id before anything is loaded."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.files import read_text
from dcr_hf.llava.conversations import IMAGE, image_first

logger = logging.getLogger(__name__)

_NAMED = 5
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
Turns = list[tuple[str, str]]  # (human or gpt, what was said)
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Value("string"),
        "questions": datasets.List(datasets.Value("string")),
        "answers": datasets.List(datasets.Value("string")),
        "length": datasets.Value("int32"),
    }
)


class _Fault(ValueError):
    """What is wrong with one record."""


def read_records(file: str, captions: bool, max_bad_fraction: float) -> datasets.Dataset:
    """Rows of FEATURES, in Arrow's memory. `length` counts words, as LLaVA does; of text without image it is negative.

    Records that cannot be used are left out, and a warning names them by id.

    Args:
        captions: each record is one image and its caption.
        max_bad_fraction: the largest share of such records.

    Raises:
        NotFoundError: no such file.
        UserError: not LLaVA's format; or too many records that cannot be used.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFoundError(f"{file!r}: no such file. Give LLaVA's JSON of conversations.")
    text = read_text("conversations", path)
    with as_user_error(f"{file} is no JSON", ValueError):
        records = json.loads(text)
    if not isinstance(records, list) or not records:
        raise UserError(f"{file} must hold a list of conversations; found {type(records).__name__} or nothing.")
    read = _read_caption if captions else _read_conversation
    rows, faults = [], []
    for number, record in enumerate(records):
        try:
            rows.append(_row(record, number, read))
        except _Fault as fault:
            faults.append(f"{_name(record, number)}: {fault}")
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        said = f"{file}: {len(faults)} of {len(records)} conversations cannot be used"
        named = f"{'; '.join(faults[:_NAMED])}{more}."
        if not rows or len(faults) > max_bad_fraction * len(records):
            raise UserError(
                f"{said}, more than --max_bad_fraction {max_bad_fraction}. {named} Correct them, or raise "
                "--max_bad_fraction to leave them out."
            )
        logger.warning("%s and are left out. %s", said, named)
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _name(record, number: int) -> str:
    named = isinstance(record, dict) and "id" in record
    return f"id {record['id']!r}" if named else f"number {number}, without id"


def _row(record, place: int, read: Callable[[Turns, bool], tuple[list[str], list[str]]]) -> dict:
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise _Fault("no list of conversations")
    image = record.get("image")
    if isinstance(image, list):
        if len(image) != 1:
            raise _Fault(f"{len(image)} images, where LLaVA-1.5 takes one")
        image = image[0]
    if image is not None:
        _check_text(image, "an image's name")
    _check_text(str(record.get("id", "")), "an id")
    turns = [_turn(turn) for turn in record["conversations"]]
    if turns and turns[0][0] == "gpt":  # shared chats may begin in the middle; LLaVA leaves that answer out
        turns = turns[1:]
    for number, (role, _) in enumerate(turns):
        if role != ("human", "gpt")[number % 2]:
            raise _Fault(f"turn {number} is {role}'s, out of order")
    turns = turns[: len(turns) // 2 * 2]  # a question after the last answer teaches nothing
    if not turns:
        raise _Fault("no answer")
    if image is not None:
        _check_image_mark(turns)
    questions, answers = read(turns, image is not None)
    words = sum(len(said.split()) for _, said in turns)
    return {
        "id": str(record.get("id", place)),
        "image": image,
        "questions": questions,
        "answers": answers,
        "length": max(words, 1) if image is not None else -max(words, 1),
    }


def _turn(turn) -> tuple[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise _Fault("a turn without a value")
    role = _ROLES.get(str(turn.get("from")))
    if role is None:
        raise _Fault(f"a turn from {turn.get('from')!r}, neither human nor gpt")
    _check_text(turn["value"], "words")
    return role, turn["value"]


def _check_text(text, what: str) -> None:
    if not isinstance(text, str):
        raise _Fault(f"{what} that is {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Fault(f"{what} with half of a surrogate pair ({text[error.start]!r}), which is no character") from error


def _check_image_mark(turns: Turns) -> None:
    """In an answer, or where there is no image, IMAGE is a word."""
    marks = sum(said.count(IMAGE) for role, said in turns if role == "human")
    if marks == 0:
        raise _Fault(f"an image, and no {IMAGE} in the questions")
    if marks > 1:
        raise _Fault(f"{marks} {IMAGE}, where LLaVA-1.5 takes one")


def _read_caption(turns: Turns, has_image: bool) -> tuple[list[str], list[str]]:
    if not has_image or len(turns) != 2:
        raise _Fault("not one image with one caption")
    return [], [turns[1][1]]


def _read_conversation(turns: Turns, has_image: bool) -> tuple[list[str], list[str]]:
    asked = [said for _, said in turns[::2]]
    return [image_first(said) for said in asked] if has_image else asked, [said for _, said in turns[1::2]]
