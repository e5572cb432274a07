"""MMVP for multimodal models: one question about two images that CLIP finds alike; both replies must be right."""

import re
from pathlib import Path

import numpy as np

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.evaluation.readers.image_sets import FileImages
from dcr_hf.evaluation.readers.locate import locate
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.evaluation.scoring.statistics import bootstrap, weighted_mean
from dcr_hf.files import read_table
from dcr_hf.mllm.answers import named_option
from dcr_hf.mllm.questions import LETTER, Question, QuestionSet, warn_of_another_size

TITLE, ROWS = "MMVP", 300
COLUMNS = ("Index", "Question", "Options", "Correct Answer")
# The published file begins with a lower-case L.
SPELLINGS = {"lndex": "Index"}
LAYOUT = f"Questions.csv ({','.join(COLUMNS)}; {ROWS} rows) and 'MMVP Images/<Index>.jpg'"
# Pairs whose published labels, (a) and then (b), are swapped: github.com/tsb0601/MMVP, issues 14 and 30.
SWAPPED, SWAPPED_LABELS = ((99, 100), (279, 280)), ("a", "b")


def read_mmvp_questions(name: str, hub_id: str, data_root: Path | None) -> QuestionSet:
    """Read the questions; rows (1, 2), (3, 4), ... of the file are pairs.

    Raises:
        NotFoundError: the table or images are missing; the message counts the images and names the first.
        UserError: columns are missing; a row is out of order, lacks options, or its answer is not an option.
    """
    located = locate(name, hub_id, data_root, ["Questions.csv", "MMVP Images/*"])
    path = located.folder / "Questions.csv"
    rows = _read_rows(path)
    images = [f"MMVP Images/{row['Index']}.jpg" for row in rows]
    missing = [image for image in images if not (located.folder / image).is_file()]
    if missing:
        raise NotFoundError(
            f"{TITLE}: {len(missing)} of {len(images)} images are missing, the first is {located.folder / missing[0]}."
            f" Expected in the folder: {LAYOUT}."
        )
    warn_of_another_size(TITLE, str(path), len(rows), ROWS)
    labels = [row["answer"] for row in rows]
    for first, second in SWAPPED:
        if second <= len(rows) and (labels[first - 1], labels[second - 1]) == SWAPPED_LABELS:
            labels[first - 1], labels[second - 1] = reversed(SWAPPED_LABELS)
    questions = [_question(index, row, label) for index, (row, label) in enumerate(zip(rows, labels, strict=True))]
    return QuestionSet(TITLE, FileImages(located.folder, images), located.source, located.revision, questions)


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise NotFoundError(f"{TITLE}: {path.parent} lacks Questions.csv. Expected in the folder: {LAYOUT}.")
    columns, numbered = read_table(TITLE, path)
    header = [SPELLINGS.get(name, name) for name in columns]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(f"{TITLE}: {path} lacks {', '.join(missing)}; it has the columns {', '.join(header)}.")
    named = [{SPELLINGS.get(name, name): value for name, value in row.items()} for _, row in numbered]
    rows = [_checked(path, number, row) for number, row in enumerate(named, start=1)]
    if not rows or len(rows) % 2:
        raise UserError(f"{TITLE}: {path} has {len(rows)} rows; rows are read in twos ({ROWS} published).")
    return rows


def _checked(path: Path, number: int, row: dict) -> dict:
    if any(row[name] is None for name in COLUMNS) or row["Index"].strip() != str(number):
        raise UserError(
            f"{TITLE}: row {number} of {path} is not '{number},Question,Options,(letter)': {list(row.values())}. Rows "
            "are numbered from 1 and read in twos."
        )
    found = re.findall(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", row["Options"].strip(), re.DOTALL)
    options, answer = dict(found), row["Correct Answer"].strip().strip("()")
    if len(options) < 2 or answer not in options:
        raise UserError(
            f"{TITLE}: row {number} of {path} has the options {row['Options']!r} and the answer "
            f"{row['Correct Answer']!r}; expected '(a) one (b) another' and the letter of one of them."
        )
    words = {name: row[name].strip() for name in COLUMNS}
    return {**words, "options": options, "answer": answer}


def _question(index: int, row: dict, label: str) -> Question:
    asked = f"{row['Question']} {row['Options']}"
    facts = {
        "group": f"questions {index - index % 2 + 1}-{index - index % 2 + 2}",
        "tag": f"pair {index // 2 + 1}",
        "question": asked,
        "options": row["options"],
        "answer": row["answer"],
        "corrected": label,
    }
    return Question(row["Index"], index, f"{asked}\n{LETTER}", facts)


def judge_option(facts: dict, reply: str) -> str | None:
    """The letter that a reply names, or None; also for CV-Bench."""
    return named_option(reply, facts["options"])


def score_mmvp(dataset: str, rows: list[dict]) -> Scored:
    """pair_accuracy (of pairs with both right) and accuracy (of single questions), by the `official` labels and by the
    `corrected` ones; a pair is one unit of the bootstrap."""
    scored = Scored([f"{row['item']} {row['answer']}" for row in rows])
    pairs = np.arange(len(rows)) // 2
    for labels, key in (("official", "answer"), ("corrected", "corrected")):
        right = np.array([row["prediction"] == row[key] for row in rows])
        both = np.logical_and.reduce(right.reshape(-1, 2), axis=1)  # (pairs,)
        scored.proportion(labels, "pair_accuracy", both.mean(), both, chance=0.25)
        scored.correct[labels, "pair_accuracy"] = both
        samples = bootstrap(weighted_mean(right), pairs)
        scored.resampled(labels, "accuracy", right.mean(), len(rows), samples, units=len(both), chance=0.5)
    return scored
