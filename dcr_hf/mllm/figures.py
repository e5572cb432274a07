"""The report's figures: a radar of all benchmarks, and the items that two models answer differently."""

from dcr_hf.evaluation.report.cards import SHOWN_CARDS, Card, Cell, Changes, Group, by_direction, small_copy
from dcr_hf.evaluation.report.page import Section
from dcr_hf.evaluation.report.plots import encoder_colors, radar_of
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.mllm.questions import QuestionSet, shortened
from dcr_hf.plotting import data_uri

AXES = {
    "MMVP pairs": ("mmvp", "official", "pair_accuracy"),
    "NaturalBench Acc": ("naturalbench", "all", "acc"),
    "NaturalBench Q-Acc": ("naturalbench", "all", "q_acc"),
    "NaturalBench I-Acc": ("naturalbench", "all", "i_acc"),
    "NaturalBench G-Acc": ("naturalbench", "all", "g_acc"),
    "CV-Bench ADE20K": ("cv_bench", "ADE20K", "accuracy"),
    "CV-Bench COCO": ("cv_bench", "COCO", "accuracy"),
    "CV-Bench 3D": ("cv_bench", "3D", "accuracy"),
}


def radar_sections(results: Results) -> list[Section]:
    """The radar's section; none with fewer than three axes, as for MMVP alone."""
    rows = {(row["encoder"], row["benchmark"], row["dataset"], row["metric"]): row for row in results.results}
    models = list(results.encoders)
    axes = {label: score for label, score in AXES.items() if (models[0], *score) in rows}
    if len(axes) < 3:
        return []
    lines = {model: [100 * rows[model, *score]["value"] for score in axes.values()] for model in models}
    chance = [100 * rows[models[0], *score]["chance"] for score in axes.values()]
    picture = radar_of(list(axes), lines, encoder_colors(results), chance, "guessing")
    note = "Percent on each benchmark, by its own measure; dotted: guessing."
    return [Section("At a glance", [note], [(picture, "Radar plot: each model on each benchmark")])]


def changed_items(predictions: dict[str, list[dict]], data: QuestionSet) -> list[Changes]:
    """The items that changed from wrong to right and back, for each model but the first: pairs of MMVP, groups of
    NaturalBench, items of CV-Bench.

    Args:
        predictions: rows of one benchmark by model.
    """
    reference, *others = predictions
    before, changes = _groups(predictions[reference]), []
    for model in others:
        after = _groups(predictions[model])
        moved = [
            (_is_right(rows), (before[name], rows))
            for name, rows in after.items()
            if _is_right(rows) != _is_right(before[name])
        ]
        groups = [
            Group(title, len(items), [_card(*item, data) for item in items[:SHOWN_CARDS]])
            for title, items in by_direction(moved).items()
        ]
        note = (
            f"Each question with the replies of {reference} → {model} below its image; green: {model} is right. A "
            "group is shown together, and is right when all its questions are."
        )
        changes.append(Changes(f"{data.title} items that changed: {reference} → {model}", note, groups))
    return changes


def _groups(rows: list[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return groups


def _is_right(rows: list[dict]) -> bool:
    return all(row["correct"] for row in rows)


def _card(old: list[dict], new: list[dict], data: QuestionSet) -> Card:
    """The card of a group: its images as columns, its questions as rows."""
    image_of = {question.item: question.image for question in data.questions}
    images = list(dict.fromkeys(image_of[row["item"]] for row in new))
    cells: dict[str, list[Cell | None]] = {row["question"]: [None] * len(images) for row in new}
    for before, after in zip(old, new, strict=True):
        replies, right = (shortened(before["reply"]), shortened(after["reply"])), after["correct"]
        column = images.index(image_of[after["item"]])
        cells[after["question"]][column] = Cell(*replies, marked=right, right=right, note=f"right: {after['answer']}")
    pictures = [data_uri(small_copy(data.images, image), "jpeg") for image in images]
    return Card(new[0]["tag"], new[0]["group"], pictures, list(cells.items()))
