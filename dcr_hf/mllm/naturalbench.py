"""NaturalBench: two questions about two images; the answers change with the image and with the question."""

import logging
from pathlib import Path

import numpy as np

from dcr_hf.errors import UserError
from dcr_hf.evaluation.readers.locate import locate
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.evaluation.scoring.statistics import bootstrap, weighted_mean
from dcr_hf.mllm.answers import first_word
from dcr_hf.mllm.parquet import read_parquet
from dcr_hf.mllm.questions import Question, QuestionSet, warn_of_another_size

TITLE, ROWS = "NaturalBench", 1900
IMAGES = ("Image_0", "Image_1")
# (question, image) of a group, in the order in which they are asked.
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))
ANSWERS = [f"Image_{image}_Question_{question}" for question, image in CELLS]
COLUMNS = ("Question_0", "Question_1", *ANSWERS, "Question_Type")
SPELLINGS = {"Question Type": "Question_Type"}  # in older revisions
WORDS = {"yes_no": ("Yes", "No"), "multiple_choice": ("A", "B")}
SUFFIXES = {
    "yes_no": "Please answer Yes or No.",
    "multiple_choice": "Please output the letter corresponding to the correct option.",
}
METRICS = {"acc": 0.5, "q_acc": 0.25, "i_acc": 0.25, "g_acc": 0.0625}  # scores of guessing
logger = logging.getLogger(__name__)


def read_naturalbench(name: str, hub_id: str, data_root: Path | None) -> QuestionSet:
    """Read four questions per row. The truth is by position, as in the authors' script.

    Raises:
        NotFoundError, UserError: as `read_parquet`; an unknown type of question.
    """
    located = locate(name, hub_id, data_root, ["*.parquet"])
    rows, images = read_parquet(TITLE, located.folder, "*.parquet", COLUMNS, IMAGES, SPELLINGS)
    warn_of_another_size(TITLE, str(located.folder), len(rows), ROWS)
    questions = [question for number, row in enumerate(rows) for question in _questions(located.folder, number, row)]
    others = [each.item for each in questions if each.facts["answer"].lower() != each.facts.pop("published").lower()]
    if others:
        logger.warning(
            "%s: the file's answers to %d of %d questions differ from the benchmark's rule, which is used; the first "
            "is %s.",
            TITLE,
            len(others),
            len(questions),
            others[0],
        )
    return QuestionSet(TITLE, images, located.source, located.revision, questions)


def _questions(folder: Path, number: int, row: dict) -> list[Question]:
    kind = row["Question_Type"]
    if kind not in WORDS:
        raise UserError(
            f"{TITLE}: row {number} of {folder} has the type {kind!r}; expected {' or '.join(map(repr, WORDS))}."
        )
    questions = []
    for (question, image), column in zip(CELLS, ANSWERS, strict=True):
        text = str(row[f"Question_{question}"]).strip()
        facts = {
            "group": f"group {number}",
            "tag": kind.replace("_", " "),
            "question": text,
            "kind": kind,
            "answer": WORDS[kind][question ^ image],  # the first word if both numbers are equal
            "published": str(row[column]).strip(),
        }
        item = f"{number}/question {question}/image {image}"
        questions.append(Question(item, 2 * number + image, f"{text} {SUFFIXES[kind]}", facts))
    return questions


def judge_word(facts: dict, reply: str) -> str | None:
    """The first yes or no, A or B, of the reply; None if there is neither."""
    return first_word(reply, WORDS[facts["kind"]])


def score_naturalbench(dataset: str, rows: list[dict]) -> Scored:
    """acc of single questions; q_acc: a question right on both images; i_acc: an image right on both questions; g_acc:
    all four. A group of four is one unit of the bootstrap."""
    scored = Scored([f"{row['item']} {row['answer']}" for row in rows])
    right = np.array([row["correct"] for row in rows]).reshape(-1, 2, 2)  # (groups, question, image)
    shares = {"acc": right.mean(axis=(1, 2)), "q_acc": right.all(axis=2).mean(axis=1)}
    shares["i_acc"] = right.all(axis=1).mean(axis=1)  # each (groups,)
    units = np.arange(len(right))
    sizes = {"acc": 4 * len(right), "q_acc": 2 * len(right), "i_acc": 2 * len(right)}
    for metric, share in shares.items():
        samples = bootstrap(weighted_mean(share), units)
        value, chance = share.mean(), METRICS[metric]
        scored.resampled("all", metric, value, sizes[metric], samples, units=len(units), chance=chance)
    all_four = np.logical_and.reduce(right, axis=(1, 2))  # (groups,)
    scored.proportion("all", "g_acc", all_four.mean(), all_four, chance=METRICS["g_acc"])
    scored.correct["all", "g_acc"] = all_four
    return scored
