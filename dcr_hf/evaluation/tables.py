"""Results as tables in the papers' layout: one row an encoder, others' published rows below, marked as theirs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dcr_hf.evaluation import published
from dcr_hf.evaluation.read_mmvp import CATEGORIES
from dcr_hf.evaluation.results import Results

NOISE = "≈"
DASH = "–"


@dataclass(frozen=True)
class Row:
    """`source` is empty for what was measured here, else who published it."""

    label: str
    cells: list[str]
    source: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    header: list[str]
    rows: list[Row] = field(default_factory=list)


def make_tables(results: Results) -> list[Table]:
    """A table for each benchmark that was run, then the paired tests."""
    ran = {row["benchmark"] for row in results.results}
    tables = [make(results) for name, make in _TABLES.items() if name in ran]
    return [*tables, _comparison_table(results)] if results.comparisons else tables


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


class _Cells:
    """One benchmark's cells by (encoder, dataset, metric), differences inside the noise marked."""

    def __init__(self, results: Results, benchmark: str):
        self.encoders = list(results.encoders)
        self.rows = {
            (row["encoder"], row["dataset"], row["metric"]): row
            for row in results.results
            if row["benchmark"] == benchmark
        }
        self.noise = {
            (row["encoder"], row["dataset"], row["metric"])
            for row in results.comparisons
            if row["benchmark"] == benchmark and row["noise"]
        }
        self.datasets = list(dict.fromkeys(dataset for _, dataset, _ in self.rows))

    def short(self, *place: str) -> str:
        """value, marked if it may be chance"""
        return percent(self.rows[place]["value"]) + self._mark(place) if place in self.rows else DASH

    def full(self, *place: str) -> str:
        """value [low, high], marked if it may be chance"""
        if place not in self.rows:
            return DASH
        row = self.rows[place]
        return f"{percent(row['value'])} [{percent(row['low'])}, {percent(row['high'])}]{self._mark(place)}"

    def _mark(self, place: tuple) -> str:
        return f" {NOISE}" if place in self.noise else ""

    def measured(self, make: Callable[[str], list[str]]) -> list[Row]:
        present = {encoder for encoder, _, _ in self.rows}
        return [Row(encoder, make(encoder)) for encoder in self.encoders if encoder in present]


def _mmvp_table(results: Results) -> Table:
    cells, metric = _Cells(results, "mmvp_vlm"), "pair_accuracy"

    def row(encoder: str) -> list[str]:
        total = cells.rows[encoder, "all", metric]
        categories = [cells.short(encoder, category, metric) for category in CATEGORIES]
        return [cells.full(encoder, "all", metric), f"{total['count']}/{total['n']}", *categories]

    theirs = [
        Row(f"{backbone}, {method}", [f"{value:.1f}", *[DASH] * (len(CATEGORIES) + 1)], "paper")
        for backbone, methods in published.MMVP.items()
        for method, value in methods.items()
    ]
    return Table(
        "P-Ability: MMVP-VLM",
        "Percent of pairs with both statements right; mean of the nine categories with its 95 % interval. Chance is "
        f"25 %. One pair is 0.74 points of the published 135. Rows marked *paper* are {published.PAPER}'s own, not measured here.",
        ["", "mean of nine", "pairs", *CATEGORIES],
        cells.measured(row) + theirs,
    )


def _clustering_table(results: Results) -> Table:
    cells = _Cells(results, "clustering")
    metrics = ("nmi", "acc", "ari")

    def row(encoder: str) -> list[str]:
        return [" / ".join(cells.short(encoder, name, metric) for metric in metrics) for name in cells.datasets]

    settings = {
        f"{row['feature']} features, seeds {', '.join(map(str, row['seeds']))}"
        for row in results.predictions
        if row["benchmark"] == "clustering"
    }
    theirs = [
        Row(
            f"{backbone}, {method}",
            [DASH] * (len(cells.datasets) - 1) + [" / ".join(map(str, values))],
            "paper",
        )
        for backbone, methods in published.CLUSTERING.items()
        for method, values in methods.items()
        if set(_mean_sets(results)) == set(published.CLUSTERED_SETS)
    ]
    return Table(
        "D-Ability: clustering",
        f"NMI / ACC / ARI in percent, mean over the seeds. k-means with k = number of classes, n_init 10, on "
        f"unit-length features ({'; '.join(sorted(settings))}). The paper's rows stand below once all its six sets "
        f"were run. Rows marked *paper* are {published.PAPER}'s own, not measured here.",
        ["", *cells.datasets],
        cells.measured(row) + theirs,
    )


def _mean_sets(results: Results) -> list[str]:
    return next((row["sets"] for row in results.results if row["dataset"] == "mean"), [])


def _zeroshot_table(results: Results) -> Table:
    cells = _Cells(results, "zeroshot")

    def row(encoder: str) -> list[str]:
        return [
            " / ".join(cells.short(encoder, name, metric) for metric in ("acc1", "acc5", "mean_per_class_recall"))
            for name in cells.datasets
        ]

    known = [published.ZEROSHOT_ACC1.get(name) for name in cells.datasets]
    theirs = [
        Row("OpenAI L 224", [f"{value} / {DASH} / {DASH}" if value else DASH for value in known], "CLIP_benchmark")
    ]
    return Table(
        "Zero-shot classification",
        f"acc1 / acc5 / mean per-class recall in percent. Rows marked *CLIP_benchmark* are {published.CLIP_BENCHMARK}, not measured here.",
        ["", *cells.datasets],
        cells.measured(row) + theirs,
    )


def _retrieval_table(results: Results) -> Table:
    cells = _Cells(results, "retrieval")
    columns = [(name, direction) for name in cells.datasets for direction in ("image_to_text", "text_to_image")]

    def row(encoder: str) -> list[str]:
        return [
            " / ".join(cells.short(encoder, name, f"{direction}_recall@{k}") for k in (1, 5, 10))
            for name, direction in columns
        ]

    known = [published.RETRIEVAL_RECALL_AT_5.get(name, {}).get(direction) for name, direction in columns]
    theirs = [
        Row("OpenAI L 224", [f"{DASH} / {value} / {DASH}" if value else DASH for value in known], "CLIP_benchmark")
    ]
    return Table(
        "Retrieval",
        f"Recall at 1 / 5 / 10 in percent. Rows marked *CLIP_benchmark* are {published.CLIP_BENCHMARK}, not measured here.",
        ["", *(f"{name}, {direction.replace('_', ' ')}" for name, direction in columns)],
        cells.measured(row) + theirs,
    )


def _comparison_table(results: Results) -> Table:
    reference = next(iter(results.encoders))
    rows = []
    for each in results.comparisons:
        verdict = f"{NOISE} inside the noise" if each["noise"] else "better" if each["difference"] > 0 else "worse"
        if each["test"] == "mcnemar":
            test = f"McNemar, {each['gained']} gained, {each['lost']} lost"
        else:
            test = "paired bootstrap"
        place = [each["benchmark"], each["dataset"], each["metric"]]
        rows.append(
            Row(each["encoder"], [*place, f"{100 * each['difference']:+.2f}", f"{each['p']:.3f}", test, verdict])
        )
    return Table(
        f"Differences from {reference}",
        f"In points, on the same items. {NOISE}: p is not below 0.05, the difference may be chance. The p-values are "
        "of single tests: of twenty comparisons without any effect one is expected below 0.05.",
        ["", "benchmark", "dataset", "metric", "difference", "p", "test", "verdict"],
        rows,
    )


_TABLES = {
    "mmvp_vlm": _mmvp_table,
    "clustering": _clustering_table,
    "zeroshot": _zeroshot_table,
    "retrieval": _retrieval_table,
}


def markdown(tables: list[Table]) -> str:
    """results.md"""
    lines = ["# Results", ""]
    for table in tables:
        lines += [f"## {table.title}", "", table.note, ""]
        lines += [_line(table.header), _line(["---"] * len(table.header))]
        for row in table.rows:
            label = f"*{row.label} ({row.source})*" if row.source else row.label
            lines.append(_line([label, *row.cells]))
        lines.append("")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
