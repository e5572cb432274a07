"""CV-Bench: counting and relations in 2D, depth and distance in 3D."""

import string
from pathlib import Path

import numpy as np

from dcr_hf.errors import UserError
from dcr_hf.evaluation.readers.locate import locate
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.evaluation.scoring.statistics import bootstrap
from dcr_hf.mllm.parquet import read_parquet
from dcr_hf.mllm.questions import LETTER, Question, QuestionSet, warn_of_another_size

TITLE, ROWS = "CV-Bench", 2638
COLUMNS = ("idx", "type", "task", "question", "choices", "answer", "prompt", "source")
SOURCES = ("ADE20K", "COCO", "Omni3D")  # the first two are the 2D half, the last the 3D half


def read_cv_bench(name: str, hub_id: str, data_root: Path | None) -> QuestionSet:
    """Read the split `test`, both halves.

    Raises:
        NotFoundError, UserError: as `read_parquet`; an answer that is not a choice, an unknown source, a
            duplicate name, a source without rows.
    """
    located = locate(name, hub_id, data_root, ["*.parquet"])
    rows, images = read_parquet(TITLE, located.folder, "test*.parquet", COLUMNS, ("image",), {})
    warn_of_another_size(TITLE, str(located.folder), len(rows), ROWS)
    questions = [_question(located.folder, index, row) for index, row in enumerate(rows)]
    present = {question.facts["source"] for question in questions}
    for source in SOURCES:
        if source not in present:
            raise UserError(
                f"{TITLE}: {located.folder} has no row of {source}, and its scores need all of {', '.join(SOURCES)}: "
                "are both test_2d.parquet and test_3d.parquet there?"
            )
    if len({question.item for question in questions}) < len(questions):
        raise UserError(f"{TITLE}: rows of {located.folder} share an idx. Are there two copies of the files?")
    return QuestionSet(TITLE, images, located.source, located.revision, questions)


def _question(folder: Path, index: int, row: dict) -> Question:
    letters = string.ascii_uppercase[: len(row["choices"] or [])]
    answer = str(row["answer"]).strip().strip("()")
    if len(letters) < 2 or answer not in list(letters) or row["source"] not in SOURCES:
        raise UserError(
            f"{TITLE}: row {index} of {folder} (idx {row['idx']}) has the choices {row['choices']}, the answer "
            f"{row['answer']!r} and the source {row['source']!r}; expected two choices or more, the letter of one of "
            f"them as '(A)', and {', '.join(SOURCES)}."
        )
    options = dict(zip(letters, map(str, row["choices"]), strict=True))
    facts = {
        "group": f"item {row['idx']}",
        "tag": f"{row['task']}, {row['source']}",
        "question": f"{row['question']} {' '.join(f'({letter}) {words}' for letter, words in options.items())}",
        "source": row["source"],
        "task": row["task"],
        "type": row["type"],
        "options": options,
        "answer": answer,
    }
    return Question(str(row["idx"]), index, f"{row['prompt']}\n{LETTER}", facts)


def score_cv_bench(dataset: str, rows: list[dict]) -> Scored:
    """accuracy of each source and task; `2D`, the mean of ADE20K's and COCO's; `3D`, which is Omni3D's; `overall`, the
    mean of 2D and 3D; micro_accuracy, the share of all items; and overall's authors_accuracy, by its authors' own
    reading: a reply is right if its first character is the letter."""
    scored = Scored([f"{row['item']} {row['answer']}" for row in rows])
    right = np.array([row["correct"] for row in rows])
    guessed = np.array([1 / len(row["options"]) for row in rows])
    sources, tasks = (np.array([row[key] for row in rows]) for key in ("source", "task"))
    parts = {name: sources == name for name in SOURCES}

    def shares(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """ADE20K, COCO, Omni3D."""
        return np.array([weights[part] @ values[part] / max(weights[part].sum(), 1) for part in parts.values()])

    # The three sources in resamples of all items together; 2D and overall are means of their columns.
    samples = bootstrap(lambda weights: shares(weights, right), np.arange(len(rows)))  # (RESAMPLES, 3)
    values, chances = (shares(np.ones(len(rows)), each) for each in (right, guessed))
    tasked = {name: tasks == name for name in dict.fromkeys(tasks.tolist())}
    for name, part in {**parts, "3D": parts["Omni3D"], **tasked}.items():
        chosen = right[part]
        scored.proportion(name, "accuracy", chosen.mean(), chosen, chance=float(guessed[part].mean()))
        scored.correct[name, "accuracy"] = chosen
    for name, columns in {"2D": np.array([0.5, 0.5, 0]), "overall": np.array([0.25, 0.25, 0.5])}.items():
        n = len(rows) - (parts["Omni3D"].sum() if name == "2D" else 0)
        chance = float(columns @ chances)
        scored.resampled(name, "accuracy", columns @ values, int(n), samples @ columns, chance=chance)
    first = np.array([row["reply"].strip()[:1] == row["answer"] for row in rows])
    columns = np.array([0.25, 0.25, 0.5])
    samples = bootstrap(lambda weights: shares(weights, first), np.arange(len(rows))) @ columns
    value = columns @ shares(np.ones(len(rows)), first)
    scored.resampled("overall", "authors_accuracy", value, len(rows), samples, chance=float(columns @ chances))
    scored.proportion("all", "micro_accuracy", right.mean(), right, chance=float(guessed.mean()))
    scored.correct["all", "micro_accuracy"] = right
    return scored
