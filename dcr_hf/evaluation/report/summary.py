"""Results as tables in the papers' layout: one row per encoder, published rows below, marked as such."""

from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.evaluation.report import published
from dcr_hf.evaluation.report.cells import Cells, difference_table
from dcr_hf.evaluation.report.table import DASH, Row, Table
from dcr_hf.evaluation.scoring.results import Results


def make_tables(results: Results) -> list[Table]:
    """A table for each benchmark that was run, then the paired tests."""
    ran = {row["benchmark"] for row in results.results}
    tables = [make(results) for name, make in _TABLES.items() if name in ran]
    return [*tables, difference_table(results)] if results.comparisons else tables


def _mmvp_table(results: Results) -> Table:
    cells, metric = Cells(results, "mmvp_vlm"), "pair_accuracy"

    def row(encoder: str) -> list[str]:
        total = cells.rows[encoder, "all", metric]
        count = f"{total['count']}/{total['n']}"
        return [cells.cell(encoder, "all", metric), count, *(cells.cell(encoder, name, metric) for name in CATEGORIES)]

    sets = {row["set"] for row in results.predictions if row["benchmark"] == "mmvp_vlm"}
    is_papers = sets == {published.MMVP_SET}  # the paper's numbers hold for its pairs alone
    published_rows = [
        Row(f"{backbone}, {method}", [f"{value:.1f}", *[DASH] * (len(CATEGORIES) + 1)], "paper")
        for backbone, methods in published.MMVP.items()
        for method, value in methods.items()
        if is_papers
    ]
    note = "Percent of pairs with both statements right, and the mean of the nine categories. Guessing gets 25 %."
    notes = cells.notes(
        f"{note} One pair of the published 135 is 0.74 points." if is_papers else note,
        source=published.PAPER if is_papers else "",
    )
    header = ["", "mean of nine", "pairs", *CATEGORIES]
    title = "MMVP-VLM" if is_papers else ", ".join(sorted(sets))
    return Table("mmvp_vlm", f"P-Ability: {title}", notes, header, cells.measured(row) + published_rows)


def _clustering_table(results: Results) -> Table:
    cells = Cells(results, "clustering")
    columns = [(name, metric) for name in cells.datasets for metric in ("nmi", "acc", "ari")]
    settings: dict[str, list[str]] = {}
    for row in results.predictions:
        if row["benchmark"] == "clustering":
            setting = f"{row['feature']} features, seeds {', '.join(map(str, row['seeds']))}"
            settings.setdefault(setting, []).append(row["encoder"])
    named = {setting: f"{setting} ({', '.join(dict.fromkeys(names))})" for setting, names in settings.items()}
    is_papers = set(published.CLUSTERED_SETS) | {"mean"} == set(cells.datasets)  # else the means are over other sets
    published_rows = [
        Row(f"{backbone}, {method}", [DASH] * (len(columns) - 3) + [str(value) for value in values], "paper")
        for backbone, methods in published.CLUSTERING.items()
        for method, values in methods.items()
        if is_papers
    ]
    notes = cells.notes(
        "Percent, mean over the seeds of k-means (k = number of classes, n_init 10) on unit-length features: "
        f"{'; '.join(named.values() if len(named) > 1 else settings)}.",
        source=published.PAPER if is_papers else "",
    )
    if not is_papers:
        notes.append("The paper's rows, means over its six sets, are shown where all six were run.")
    header = ["", *(metric.upper() for _, metric in columns)]
    rows = cells.measured(lambda encoder: [cells.cell(encoder, *column) for column in columns])
    groups = [(name, 3) for name in cells.datasets]
    return Table("clustering", "D-Ability: clustering", notes, header, rows + published_rows, groups)


_CLASS_METRICS = {"acc1": "acc1", "acc5": "acc5", "mean_per_class_recall": "mean per-class recall"}


def _zeroshot_table(results: Results) -> Table:
    cells = Cells(results, "zeroshot")
    columns = [(name, metric) for name in cells.datasets for metric in _CLASS_METRICS]
    known = [published.ZEROSHOT_ACC1.get(name) if metric == "acc1" else None for name, metric in columns]
    published_rows = _clip_benchmark_row(known)
    notes = cells.notes("Percent.", source=published.CLIP_BENCHMARK if published_rows else "")
    return _class_table(cells, "zeroshot", "Zero-shot classification", notes, published_rows)


def _clip_benchmark_row(known: list[float | None]) -> list[Row]:
    """The published row for these columns; empty if nothing is published."""
    if not any(known):
        return []
    return [Row("OpenAI L 224", [f"{value}" if value else DASH for value in known], "CLIP_benchmark")]


def _probe_table(results: Results) -> Table:
    cells = Cells(results, "linear_probe")
    features = dict.fromkeys(row["feature"] for row in cells.rows.values())
    notes = cells.notes(
        "Percent of the test split, by a logistic regression on the training split's standardised "
        f"{' / '.join(features)} features. Each C, chosen on held-out training images, is in results.json."
    )
    return _class_table(cells, "linear_probe", "Linear probe", notes, [])


def _class_table(cells: Cells, benchmark: str, title: str, notes: list[str], published_rows: list[Row]) -> Table:
    columns = [(name, metric) for name in cells.datasets for metric in _CLASS_METRICS]
    rows = cells.measured(lambda encoder: [cells.cell(encoder, *column) for column in columns])
    header = ["", *(_CLASS_METRICS[metric] for _, metric in columns)]
    return Table(
        benchmark,
        title,
        notes,
        header,
        rows + published_rows,
        [(name, len(_CLASS_METRICS)) for name in cells.datasets],
    )


def _retrieval_table(results: Results) -> Table:
    cells = Cells(results, "retrieval")
    directions = ("image_to_text", "text_to_image")
    columns = [(name, direction, k) for name in cells.datasets for direction in directions for k in (1, 5, 10)]
    known = [
        published.RETRIEVAL_RECALL_AT_5.get(name, {}).get(direction) if k == 5 else None
        for name, direction, k in columns
    ]
    published_rows = _clip_benchmark_row(known)
    rows = cells.measured(
        lambda encoder: [cells.cell(encoder, name, f"{direction}_recall@{k}") for name, direction, k in columns]
    )
    header = ["", *(f"{direction.replace('_', ' ')} R@{k}" for _, direction, k in columns)]
    notes = cells.notes("Percent.", source=published.CLIP_BENCHMARK if published_rows else "")
    return Table(
        "retrieval", "Retrieval", notes, header, rows + published_rows, [(name, 6) for name in cells.datasets]
    )


_TABLES = {
    "mmvp_vlm": _mmvp_table,
    "clustering": _clustering_table,
    "zeroshot": _zeroshot_table,
    "linear_probe": _probe_table,
    "retrieval": _retrieval_table,
}
