"""Results as tables in the papers' layout: one row an encoder, others' published rows below, marked as theirs."""

from collections.abc import Callable

from dcr_hf.evaluation import published
from dcr_hf.evaluation.read_mmvp import CATEGORIES
from dcr_hf.evaluation.results import Results
from dcr_hf.evaluation.table import DASH, NOISE, Row, Table


def make_tables(results: Results) -> list[Table]:
    """A table for each benchmark that was run, then the paired tests."""
    ran = {row["benchmark"] for row in results.results}
    tables = [make(results) for name, make in _TABLES.items() if name in ran]
    return [*tables, _difference_table(results)] if results.comparisons else tables


class _Cells:
    """One benchmark's cells by (encoder, dataset, metric), differences inside the noise marked."""

    def __init__(self, results: Results, benchmark: str):
        rows = [row for row in results.results if row["benchmark"] == benchmark]
        self.rows = {(row["encoder"], row["dataset"], row["metric"]): row for row in rows}
        self.noise = {
            (row["encoder"], row["dataset"], row["metric"])
            for row in results.comparisons
            if row["benchmark"] == benchmark and row["noise"]
        }
        self.datasets = sorted({row["dataset"]: None for row in rows}, key=lambda name: name == "mean")
        present = {row["encoder"] for row in rows}
        self.encoders = [encoder for encoder in results.encoders if encoder in present]

    def cell(self, *place: str) -> str:
        """Value and half its 95 % interval, in percent, marked if the difference may be chance."""
        if place not in self.rows:
            return DASH
        row = self.rows[place]
        mark = f" {NOISE}" if place in self.noise else ""
        return f"{100 * row['value']:.1f} ±{50 * (row['high'] - row['low']):.1f}{mark}"

    def measured(self, make: Callable[[str], list[str]]) -> list[Row]:
        return [Row(encoder, make(encoder)) for encoder in self.encoders]

    def notes(self, *first: str, source: str = "") -> list[str]:
        lines = [*first, "± is half of the 95 % interval; results.json has both ends."]
        if self.noise:
            lines.append(f"{NOISE}: the difference from {self.encoders[0]} may be chance (p not below 0.05).")
        return [*lines, f"Marked rows are {source}, not measured here."] if source else lines


def _mmvp_table(results: Results) -> Table:
    cells, metric = _Cells(results, "mmvp_vlm"), "pair_accuracy"

    def row(encoder: str) -> list[str]:
        total = cells.rows[encoder, "all", metric]
        count = f"{total['count']}/{total['n']}"
        return [cells.cell(encoder, "all", metric), count, *(cells.cell(encoder, name, metric) for name in CATEGORIES)]

    theirs = [
        Row(f"{backbone}, {method}", [f"{value:.1f}", *[DASH] * (len(CATEGORIES) + 1)], "paper")
        for backbone, methods in published.MMVP.items()
        for method, value in methods.items()
    ]
    notes = cells.notes(
        "Percent of pairs with both statements right, and the mean of the nine categories. Guessing gets 25 %. One "
        "pair of the published 135 is 0.74 points.",
        source=published.PAPER,
    )
    header = ["", "mean of nine", "pairs", *CATEGORIES]
    return Table("mmvp_vlm", "P-Ability: MMVP-VLM", notes, header, cells.measured(row) + theirs)


def _clustering_table(results: Results) -> Table:
    cells = _Cells(results, "clustering")
    columns = [(name, metric) for name in cells.datasets for metric in ("nmi", "acc", "ari")]
    settings: dict[str, list[str]] = {}
    for row in results.predictions:
        if row["benchmark"] == "clustering":
            setting = f"{row['feature']} features, seeds {', '.join(map(str, row['seeds']))}"
            settings.setdefault(setting, []).append(row["encoder"])
    named = {setting: f"{setting} ({', '.join(dict.fromkeys(names))})" for setting, names in settings.items()}
    is_papers = set(published.CLUSTERED_SETS) | {"mean"} == set(cells.datasets)  # else the means are of other sets
    theirs = [
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
    return Table("clustering", "D-Ability: clustering", notes, header, rows + theirs, groups)


_CLASS_METRICS = {"acc1": "acc1", "acc5": "acc5", "mean_per_class_recall": "mean per-class recall"}


def _zeroshot_table(results: Results) -> Table:
    cells = _Cells(results, "zeroshot")
    columns = [(name, metric) for name in cells.datasets for metric in _CLASS_METRICS]
    known = [published.ZEROSHOT_ACC1.get(name) if metric == "acc1" else None for name, metric in columns]
    theirs = [Row("OpenAI L 224", [f"{value}" if value else DASH for value in known], "CLIP_benchmark")]
    notes = cells.notes("Percent.", source=published.CLIP_BENCHMARK)
    return _class_table(cells, "zeroshot", "Zero-shot classification", notes, theirs)


def _probe_table(results: Results) -> Table:
    cells = _Cells(results, "linear_probe")
    features = dict.fromkeys(row["feature"] for row in cells.rows.values())
    notes = cells.notes(
        "Percent of the test split, by a logistic regression on the training split's standardised "
        f"{' / '.join(features)} features. Each C, chosen on held-out training images, is in results.json."
    )
    return _class_table(cells, "linear_probe", "Linear probe", notes, [])


def _class_table(cells: _Cells, benchmark: str, title: str, notes: list[str], theirs: list[Row]) -> Table:
    columns = [(name, metric) for name in cells.datasets for metric in _CLASS_METRICS]
    rows = cells.measured(lambda encoder: [cells.cell(encoder, *column) for column in columns])
    header = ["", *(_CLASS_METRICS[metric] for _, metric in columns)]
    return Table(
        benchmark, title, notes, header, rows + theirs, [(name, len(_CLASS_METRICS)) for name in cells.datasets]
    )


def _retrieval_table(results: Results) -> Table:
    cells = _Cells(results, "retrieval")
    directions = ("image_to_text", "text_to_image")
    columns = [(name, direction, k) for name in cells.datasets for direction in directions for k in (1, 5, 10)]
    known = [
        published.RETRIEVAL_RECALL_AT_5.get(name, {}).get(direction) if k == 5 else None
        for name, direction, k in columns
    ]
    theirs = [Row("OpenAI L 224", [f"{value}" if value else DASH for value in known], "CLIP_benchmark")]
    rows = cells.measured(
        lambda encoder: [cells.cell(encoder, name, f"{direction}_recall@{k}") for name, direction, k in columns]
    )
    header = ["", *(f"{direction.replace('_', ' ')} R@{k}" for _, direction, k in columns)]
    notes = cells.notes("Percent.", source=published.CLIP_BENCHMARK)
    return Table("retrieval", "Retrieval", notes, header, rows + theirs, [(name, 6) for name in cells.datasets])


def _difference_table(results: Results) -> Table:
    rows = []
    for each in results.comparisons:
        verdict = f"{NOISE} inside the noise" if each["noise"] else "better" if each["difference"] > 0 else "worse"
        test = "paired bootstrap"
        if each["test"] == "mcnemar":
            test = f"McNemar: {each['gained']} gained, {each['lost']} lost"
        p = "< 0.001" if each["p"] < 0.001 else f"{each['p']:.3f}"
        ends = f"{100 * each['low']:+.1f} to {100 * each['high']:+.1f}"
        change = [f"{100 * each['difference']:+.2f}", ends, p, verdict, test]
        rows.append(Row(each["encoder"], [each["benchmark"], each["dataset"], each["metric"], *change]))
    notes = [
        "In points, on the same items. Each p-value is of a single test: of twenty comparisons without any effect one "
        "is expected below 0.05."
    ]
    header = ["", "benchmark", "dataset", "metric", "difference", "95 %", "p", "verdict", "test"]
    return Table("", f"Differences from {next(iter(results.encoders))}", notes, header, rows)


_TABLES = {
    "mmvp_vlm": _mmvp_table,
    "clustering": _clustering_table,
    "zeroshot": _zeroshot_table,
    "linear_probe": _probe_table,
    "retrieval": _retrieval_table,
}


def markdown(tables: list[Table]) -> str:
    """results.md"""
    lines = ["# Results", ""]
    for table in tables:
        lines += [f"## {table.title}", "", " ".join(table.notes), ""]
        lines += [_line(table.full_header), _line(["---"] * len(table.header))]
        for row in table.rows:
            label = f"*{row.label} ({row.source})*" if row.source else row.label
            lines.append(_line([label, *row.cells]))
        lines.append("")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
