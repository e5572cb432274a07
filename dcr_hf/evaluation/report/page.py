"""report.html: tables, figures, and the MMVP pairs on which two encoders differ, in one file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from dcr_hf.errors import NotFoundError
from dcr_hf.evaluation.report.cards import SHOWN_CARDS, Card, Cell, Changes, Group, by_direction
from dcr_hf.evaluation.report.maps import thumbnail_name
from dcr_hf.evaluation.report.plots import clustering_bars, encoder_colors, radar, tsne_map
from dcr_hf.evaluation.report.table import Table, markdown
from dcr_hf.evaluation.scoring.results import Results, read_rows, write_text
from dcr_hf.plotting import data_uri


@dataclass(frozen=True)
class Section:
    """A part of the page that a caller adds, between the tables and the maps.

    Attributes:
        title: its heading.
        notes: sentences below the heading.
        figures: (data URI, alternative text) of each picture; `plots.data_uri` makes one of an image file's bytes.

    Raises:
        ValueError: a figure is not an image data URI, so that the page would need the network.
    """

    title: str
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()

    def __post_init__(self):
        for source, text in self.figures:
            if not source.startswith("data:image/"):
                raise ValueError(f"section {self.title!r}, figure {text!r}: {source[:60]!r} is no data:image/ URI.")


def write_report(
    results: Results,
    tables: list[Table],
    path: Path,
    sections: Sequence[Section] = (),
    changes: Sequence[Changes] = (),
) -> None:
    """Write the page as one file without scripts or network access, from the files that `results` names."""
    environment = Environment(
        loader=PackageLoader("dcr_hf.evaluation.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    ran = {row["benchmark"] for row in results.results}
    page = environment.get_template("report.html").render(
        results=results,
        tables=tables,
        colors=encoder_colors(results),
        radar=radar(results) if "mmvp_vlm" in ran else None,
        bars=clustering_bars(results) if "clustering" in ran else None,
        maps=[tsne_map(row["path"], f"{row['encoder']}: {row['set']} ({row['feature']})") for row in results.maps],
        sections=sections,
        changes=[*changed_pairs(results), *changes],
    )
    write_text(path, page)


def write_outputs(
    results: Results,
    tables: list[Table],
    output_dir: Path,
    sections: Sequence[Section] = (),
    changes: Sequence[Changes] = (),
) -> None:
    """Write results.json, results.md and report.html."""
    results.write(output_dir)
    write_text(output_dir / "results.md", markdown(tables))
    write_report(results, tables, output_dir / "report.html", sections, changes)


def changed_pairs(results: Results) -> list[Changes]:
    """The MMVP pairs that changed from wrong to right and back, for each encoder but the first."""
    paths = {
        (row["encoder"], row["set"]): row["path"] for row in results.predictions if row["benchmark"] == "mmvp_vlm"
    }
    changes = []
    for (encoder, name), path in paths.items():
        reference = next(iter(results.encoders))
        if encoder == reference or (reference, name) not in paths:
            continue
        before = {row["item"]: row for row in read_rows(paths[reference, name])}
        moved = [
            (row["correct"], (before[row["item"]], row))
            for row in read_rows(path)
            if row["item"] in before and row["correct"] != before[row["item"]]["correct"]
        ]
        groups = [
            Group(title, len(pairs), [_card(*pair, results.thumbnails) for pair in pairs[:SHOWN_CARDS]])
            for title, pairs in by_direction(moved).items()
        ]
        note = (
            f"Probability of each image under each statement, {reference} → {encoder}. Green cells: the image that "
            "the statement is true of; above 50 % there is right. A pair counts when both statements are right."
        )
        changes.append(Changes(f"MMVP pairs that changed: {reference} → {encoder}", note, groups))
    return changes


def _card(old: dict, new: dict, folders: list[str]) -> Card:
    rows = []
    for index, text in enumerate(new["statements"]):
        cells = []
        for image, (before, after) in enumerate(
            zip(old["probabilities"][index], new["probabilities"][index], strict=True)
        ):
            is_true = new["references"][index] == image
            shown = (f"{100 * before:.1f} %", f"{100 * after:.1f} %")
            cells.append(Cell(*shown, marked=is_true, right=after > 0.5 if is_true else None))
        rows.append((text, cells))
    images = [_thumbnail(name, folders) for name in new["images"]]
    return Card(new["category"], f"questions {new['item']}", images, rows)


def _thumbnail(name: str, folders: list[str]) -> str:
    for folder in folders:
        path = Path(folder) / thumbnail_name(name)
        if path.is_file():
            return data_uri(path.read_bytes(), "jpeg")
    raise NotFoundError(f"no thumbnail of {name} in {', '.join(folders)}: run recipes/evaluate.py on it again.")
