"""Abilities against the distance that the encoder has moved: every checkpoint of a run, not only its end."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dcr_hf.diagnostics.distance import TrainedRun
from dcr_hf.errors import NotFoundError
from dcr_hf.evaluation.plan import prepare
from dcr_hf.evaluation.report.table import markdown_line
from dcr_hf.evaluation.run import execute
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY, measured
from dcr_hf.evaluation.scoring.results import write_text, writes_to
from dcr_hf.models.results import has_encoder
from dcr_hf.plotting import COLORS, FAINT, INK, STYLE
from dcr_hf.training.checkpoints import complete_checkpoints, step_of

ORIGINAL = "original"  # the untrained encoder


@dataclass(frozen=True)
class Point:
    """A checkpoint: its step and folder, how far it has moved (mean cosine distance), and its numbers beside the
    original's, see `abilities.measured`."""

    step: int
    folder: str
    moved: float
    measured: dict[str, dict[str, float]]


def measure_curve(
    run: Path,
    benchmarks: Sequence[str],
    data_root: Path | None,
    output: Path,
    cache: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    batch_size: int = 64,
) -> list[Point] | None:
    """Measure every checkpoint of the stage that trained the encoder beside the original, on the same items.

    The ordinary evaluation's results are left in `output`, its embeddings in `cache` (default: within `output`).

    Every process calls it and embeds a share of the images; all but the first return None.

    Raises:
        NotFoundError: no run with a trained encoder, or no checkpoints.
    """
    trained = TrainedRun.read(run)
    folders = [folder for folder in complete_checkpoints(trained.stage) if has_encoder(folder)]
    if not folders:
        raise NotFoundError(
            f"--run {run}: {trained.stage} has no checkpoints to measure. Train with --save_steps N, and without "
            "--save_total_limit."
        )
    encoders = {ORIGINAL: trained.encoder} | {f"step {step_of(folder)}": str(folder) for folder in folders}
    prepared = prepare(encoders, list(benchmarks), data_root)
    results = execute(prepared, output, cache or output / "cache", seeds=seeds, batch_size=batch_size, page=False)
    if results is None:
        return None
    distance_of = trained.distances_from(trained.load())
    return [
        Point(step_of(folder), str(folder), distance_of(trained.load(folder)), measured(results, name))
        for name, folder in zip(list(encoders)[1:], folders, strict=True)
    ]


def choose(points: Sequence[Point]) -> Point:
    """The checkpoint whose changes of P-Ability and D-Ability sum to most; the earlier one of equals.

    One rule for early stopping, to be applied on other data than what is reported.
    """
    return max(points, key=lambda point: sum(point.measured[title]["change"] for title in _abilities(point)))


def _abilities(point: Point) -> list[str]:
    """Both abilities, or what else was measured where neither was."""
    return [title for title in (P_ABILITY, D_ABILITY) if title in point.measured] or list(point.measured)


def write_curve(points: Sequence[Point], output: Path) -> None:
    """curve.json, curve.md and curve.png."""
    write_text(output / "curve.json", json.dumps([asdict(point) for point in points], indent=1) + "\n")
    write_text(output / "curve.md", markdown(points))
    with writes_to(output):
        draw(points).savefig(output / "curve.png", dpi=130)


def read_curve(output: Path) -> list[Point]:
    """What `write_curve` wrote."""
    return [Point(**each) for each in json.loads((output / "curve.json").read_text(encoding="utf-8"))]


def markdown(points: Sequence[Point]) -> str:
    """A line a checkpoint: step, distance, and every number with its change; the chosen step in bold."""
    titles, chosen = list(points[0].measured), choose(points)
    lines = [markdown_line(["step", "moved", *titles]), markdown_line(["---"] * (len(titles) + 2))]
    for point in points:
        percent = [{part: 100 * value for part, value in row.items()} for row in point.measured.values()]
        cells = [
            f"{row['value']:.1f}, {row['change']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})" for row in percent
        ]
        step = f"**{point.step}**" if point is chosen else str(point.step)
        lines.append(markdown_line([step, f"{point.moved:.4f}", *cells]))
    note = "In percent; changes against the original in points, with 95 % intervals. Bold: both changes sum to most."
    return "\n".join([*lines, "", note]) + "\n"


def draw(points: Sequence[Point]) -> Figure:
    """Change of each ability against the distance moved, with 95 % intervals; the chosen checkpoint is ringed."""
    chosen = choose(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color=INK, lw=0.8)
        for title, color in zip(_abilities(points[0]), COLORS[1:], strict=False):
            moved = [0.0, *(point.moved for point in points)]
            changes, low, high = (
                [0.0, *(100 * point.measured[title][part] for point in points)] for part in ("change", "low", "high")
            )
            axes.fill_between(moved, low, high, color=color, alpha=0.15, lw=0)
            axes.plot(moved, changes, "o-", color=color, ms=4, lw=1.5, label=title)
            axes.plot(chosen.moved, 100 * chosen.measured[title]["change"], "o", mfc="none", color=color, ms=11)
        for point in points:
            top: Any = ("data", "axes fraction")
            where = {"xycoords": top, "xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(f"{point.step}", (point.moved, 1), fontsize=8, ha="center", **where)
        axes.set_xlabel("distance moved (mean 1 - cosine); on top: steps")
        axes.set_ylabel("change, points (95 %)")
        axes.grid(color=FAINT, lw=0.6)
        axes.legend(frameon=False)
    return figure
