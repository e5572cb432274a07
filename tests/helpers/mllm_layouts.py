"""The three benchmarks in exactly the published layouts, and models that answer."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets

from dcr_hf.mllm.questions import Question, QuestionSet
from helpers.images import encoded, photographs
from helpers.tiny_llava import save_llava
from helpers.tiny_models import save_clip

HEADER = ["lndex", "Question", "Options", "Correct Answer"]  # spelt as in the published file


def write_mmvp_questions(folder: Path, pairs: int = 150, header: list[str] = HEADER) -> Path:
    """Answers (a), (b), as most of the published pairs have them, the two wrong ones among them."""
    (folder / "MMVP Images").mkdir(parents=True)
    with (folder / "Questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for place, image in enumerate(photographs(2 * pairs, side=32)):
            image.crop((0, 0, 32, 24)).save(folder / "MMVP Images" / f"{place + 1}.jpg")
            question = f"Is thing {place // 2 + 1}, seen from here, open or closed?"
            writer.writerow([place + 1, question, "(a) Open (b) Closed", "(a)" if place % 2 == 0 else "(b)"])
    return folder


def naturalbench_rows(count: int) -> list[dict]:
    """Yes/no questions and, every third, a multiple choice."""
    rows = []
    for number, image in enumerate(photographs(count, side=32)):
        choice = number % 3 == 2
        first, second = ("A", "B") if choice else ("Yes", "No")
        options = " Option: A: left; B: right;" if choice else ""
        rows.append(
            {
                "Index": number,
                "Image_0": {"bytes": encoded(image), "path": None},
                "Image_1": {"bytes": encoded(image.rotate(180)), "path": None},
                "Question_0": f"Is thing {number} upright?{options}",
                "Question_1": f"Is thing {number} upside down?{options}",
                "Image_0_Question_0": first,
                "Image_1_Question_0": second,
                "Image_0_Question_1": second,
                "Image_1_Question_1": first,
                "Question_Type": "multiple_choice" if choice else "yes_no",
            }
        )
    return rows


def write_parquet(path: Path, rows: list[dict], images: tuple[str, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    for name in images:
        table = table.cast_column(name, datasets.Image())
    table.to_parquet(path)
    return path


def write_naturalbench(folder: Path, count: int = 6, shards: int = 2) -> Path:
    rows = naturalbench_rows(count)
    for shard in range(shards):
        share = rows[shard * count // shards : (shard + 1) * count // shards]
        path = folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        write_parquet(path, share, ("Image_0", "Image_1"))
    return folder


def cv_bench_row(number: int, source: str, task: str, choices: list[str], answer: str) -> dict:
    question = f"How is thing {number} in the image?"
    listed = "\n".join(f"({letter}) {words}" for letter, words in zip("ABCDEF", choices, strict=False))
    return {
        "idx": number,
        "type": "3D" if source == "Omni3D" else "2D",
        "task": task,
        "image": {"bytes": encoded(photographs(number + 1, side=32)[-1], "PNG"), "path": f"{number}.png"},
        "question": question,
        "choices": choices,
        "answer": f"({answer})",
        "prompt": f"{question} Select from the following choices.\n{listed}",
        "filename": f"img/{number}.png",
        "source": source,
    }


CV_ROWS = [
    ("ADE20K", "Count", ["0", "1", "2", "3"], "A"),
    ("ADE20K", "Relation", ["left", "right"], "B"),
    ("COCO", "Count", ["2", "3", "4", "5", "6"], "E"),
    ("COCO", "Relation", ["above", "below"], "A"),
    ("COCO", "Count", ["1", "2"], "A"),
    ("Omni3D", "Depth", ["table", "chair"], "B"),
    ("Omni3D", "Distance", ["sofa", "lamp"], "A"),
    ("Omni3D", "Depth", ["books", "door"], "B"),
    ("Omni3D", "Distance", ["car", "truck"], "B"),
    ("Omni3D", "Depth", ["bed", "desk"], "A"),
]


def write_cv_bench(folder: Path) -> Path:
    rows = [cv_bench_row(number, *row) for number, row in enumerate(CV_ROWS)]
    write_parquet(folder / "test_2d.parquet", rows[:5], ("image",))
    write_parquet(folder / "test_3d.parquet", rows[5:], ("image",))
    return folder


def save_talkative_llava(folder: Path, seed: int = 0) -> Path:
    """A LLaVA with random weights, so large that its replies differ from question to question."""
    return save_llava(folder, save_clip(folder.with_name(f"{folder.name}-tower")), seed=seed, initializer_range=0.4)


class Scripted:
    """A model that says what a function of the question says."""

    def __init__(self, name: str, say: Callable[[Question], str]):
        self.name, self.say = name, say
        self.identity = {"path": name, "weights": name, "dtype": "none"}

    def answer(self, data: QuestionSet, chosen: list[int]) -> Iterator[tuple[list[int], list[str]]]:
        for start in range(0, len(chosen), 4):
            places = chosen[start : start + 4]
            yield places, [self.say(data.questions[place]) for place in places]

    def release(self) -> None:
        pass


def right_answer(question: Question) -> str:
    """By the labels that are right."""
    return question.facts.get("corrected", question.facts["answer"])
