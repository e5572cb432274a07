"""Scores as table cells with interval and noise mark; the table of differences."""

from collections.abc import Callable

from dcr_hf.evaluation.report.table import DASH, NOISE, Row, Table
from dcr_hf.evaluation.scoring.results import Results


class Cells:
    """One benchmark's cells by (encoder, dataset, metric); differences within noise are marked."""

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

    def cell(self, *key: str) -> str:
        """Value and half its 95 % interval, in percent, marked if the difference may be chance."""
        if key not in self.rows:
            return DASH
        row = self.rows[key]
        mark = f" {NOISE}" if key in self.noise else ""
        return f"{100 * row['value']:.1f} ±{50 * (row['high'] - row['low']):.1f}{mark}"

    def measured(self, make: Callable[[str], list[str]]) -> list[Row]:
        return [Row(encoder, make(encoder)) for encoder in self.encoders]

    def notes(self, *first: str, source: str = "") -> list[str]:
        lines = [*first, "± is half of the 95 % interval; results.json has both ends."]
        if self.noise:
            lines.append(f"{NOISE}: the difference from {self.encoders[0]} may be chance (p not below 0.05).")
        return [*lines, f"Marked rows are {source}, not measured here."] if source else lines


def difference_table(results: Results) -> Table:
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
        "In points, on the same items. Each p-value is of a single test: without any effect, one comparison in twenty "
        "is expected below 0.05."
    ]
    header = ["", "benchmark", "dataset", "metric", "difference", "95 %", "p", "verdict", "test"]
    return Table("", f"Differences from {next(iter(results.encoders))}", notes, header, rows)
