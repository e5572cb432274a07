"""Results as tables: one row per model, the paper's LLaVA-1.5 rows below, marked as such; replies without option."""

from dcr_hf.evaluation.report import published
from dcr_hf.evaluation.report.cells import Cells, difference_table
from dcr_hf.evaluation.report.table import DASH, Row, Table
from dcr_hf.evaluation.scoring.results import Results, read_rows
from dcr_hf.mllm.questions import shortened

LISTED = 25
_NOTES = {
    "mmvp": "Percent. A pair counts when both of its questions are right; guessing gets 25 % of the pairs. Corrected: "
    "the labels of two pairs, which were published swapped, are corrected.",
    "naturalbench": "Percent. Q: a question right on both images; I: both questions right on an image; G: all four. "
    "Guessing gets 50, 25, 25 and 6.25 %.",
    "cv_bench": "Percent. 2D is the mean of ADE20K and COCO, 3D is Omni3D, overall the mean of 2D and 3D, micro the "
    "share of all items; authors: overall, where a reply counts by its first character alone.",
}
# For each benchmark: (group, number of columns), if there are groups; (dataset, metric, heading).
_COLUMNS = {
    "mmvp": (
        [("official labels", 2), ("corrected labels", 2)],
        [
            (labels, metric, heading)
            for labels in ("official", "corrected")
            for metric, heading in (("pair_accuracy", "pairs"), ("accuracy", "questions"))
        ],
    ),
    "naturalbench": (
        [],
        [
            ("all", metric, heading)
            for metric, heading in (("acc", "Acc"), ("q_acc", "Q-Acc"), ("i_acc", "I-Acc"), ("g_acc", "G-Acc"))
        ],
    ),
    "cv_bench": (
        [("2D", 3), ("3D", 1), ("both", 3), ("tasks", 4)],
        [
            *(("ADE20K", "accuracy", "ADE20K"), ("COCO", "accuracy", "COCO"), ("2D", "accuracy", "mean")),
            ("3D", "accuracy", "Omni3D"),
            *(("overall", "accuracy", "overall"), ("overall", "authors_accuracy", "authors")),
            ("all", "micro_accuracy", "micro"),
            *((task, "accuracy", task) for task in ("Count", "Relation", "Depth", "Distance")),
        ],
    ),
}


def make_tables(results: Results) -> list[Table]:
    """A table for each benchmark that was run, and the paired tests."""
    ran = {row["benchmark"] for row in results.results}
    tables = [_table(results, benchmark) for benchmark in _COLUMNS if benchmark in ran]
    return [*tables, difference_table(results)] if results.comparisons else tables


def _table(results: Results, benchmark: str) -> Table:
    cells, (groups, columns) = Cells(results, benchmark), _COLUMNS[benchmark]
    asked = {row["encoder"]: row for row in results.predictions if row["benchmark"] == benchmark}

    def row(model: str) -> list[str]:
        unparsed = f"{asked[model]['unparsed']}/{asked[model]['items']}"
        return [*(cells.cell(model, dataset, metric) for dataset, metric, _ in columns), unparsed]

    published_rows = []
    for method, numbers in published.LLAVA.items():
        known = [numbers.get((benchmark, dataset, metric)) for dataset, metric, _ in columns]
        shown = [DASH if value is None else f"{value:.1f}" for value in known]
        if any(value is not None for value in known):
            published_rows.append(Row(f"LLaVA-1.5 7B, {method}", [*shown, DASH], "paper"))
    notes = cells.notes(
        _NOTES[benchmark], "No option: replies that name none, counted as wrong.", source=published.PAPER
    )
    header = ["", *(heading for _, _, heading in columns), "no option"]
    groups = [*groups, ("", 1)] if groups else []
    title = next(iter(asked.values()))["set"]
    return Table(benchmark, title, notes, header, cells.measured(row) + published_rows, groups)


def unparsed_tables(results: Results) -> list[Table]:
    """One table of the replies that name no option; none if every reply names one."""
    rows = []
    for entry in results.predictions:
        unparsed = [row for row in read_rows(entry["path"]) if row["prediction"] is None]
        for each in unparsed[:LISTED]:
            texts = [shortened(each[part]) for part in ("question", "reply")]
            rows.append(Row(entry["encoder"], [entry["benchmark"], each["item"], *texts]))
    note = f"Counted as wrong. The first {LISTED} of each model and benchmark; all are in unparsed.jsonl."
    header = ["", "benchmark", "item", "question", "reply"]
    return [Table("", "Replies that name no option", [note], header, rows)] if rows else []
