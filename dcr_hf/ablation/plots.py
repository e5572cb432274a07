"""Two figures of an ablation: the final abilities of every run, and their changes."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dcr_hf.ablation.summary import abilities, by_variant, change
from dcr_hf.ablation.variants import ORIGINAL, is_control
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY
from dcr_hf.plotting import COLORS, FAINT, INK, STYLE

_MARKERS = "oDsv^<>PXph*"


def draw(found: list[dict]) -> Figure:
    """Plot P-Ability against D-Ability, if both were measured: one point per seed, joined to the original of that
    seed. Beside it, plot each ability's change with its 95 % interval, one line per variant."""
    runs, measured = by_variant(found), abilities(found)
    trained = [name for name in runs if name != ORIGINAL]
    both = int(len(measured) == 2)  # one more panel
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(4.2 * len(measured) + 6 * both, max(4.2, 0.36 * len(trained) + 1.6)), layout="constrained"
        )
        panels = figure.subplots(
            1, len(measured) + both, squeeze=False, width_ratios=[1.4] * both + [1] * len(measured)
        )[0]
        if both:
            _scatter(panels[0], {name: some for name, some in runs.items() if not is_control(name)})
        for index, (axes, title) in enumerate(zip(panels[both:], measured, strict=True)):
            _changes(axes, {name: runs[name] for name in trained}, title, named=index == 0)
    return figure


def _scatter(axes, runs: dict[str, list[dict]]) -> None:
    points_of = {
        (each["variant"], each["seed"]): [100 * each["measured"][title]["value"] for title in (D_ABILITY, P_ABILITY)]
        for some in runs.values()
        for each in some
    }
    for index, name in enumerate(runs):
        points = {seed: point for (variant, seed), point in points_of.items() if variant == name}
        color = COLORS[0] if name == ORIGINAL else COLORS[1 + index % (len(COLORS) - 1)]
        for seed, point in points.items():
            if (ORIGINAL, seed) in points_of:
                axes.plot(
                    *zip(points_of[ORIGINAL, seed], point, strict=True), color=color, lw=0.8, alpha=0.5, zorder=1
                )
        axes.scatter(
            *np.array(list(points.values())).T,
            color=color,
            marker=_MARKERS[index % len(_MARKERS)],
            label=name,
            zorder=2,
        )
    axes.set_xlabel("D-Ability (NMI, %)")
    axes.set_ylabel("P-Ability (pairs, %)")
    axes.grid(color=FAINT, lw=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)


def _changes(axes, runs: dict[str, list[dict]], title: str, named: bool) -> None:
    for height, some in enumerate(runs.values()):
        moved = change(some, title)
        low, middle, high = (100 * each for each in (moved.low, moved.over_seeds.mean, moved.high))
        color = "#009e73" if low > 0 else "#d55e00" if high < 0 else "#7b8794"
        axes.plot([low, high], [height, height], color=color, lw=2)
        axes.plot(
            [100 * each["measured"][title]["change"] for each in some], [height] * len(some), "|", color=color, ms=8
        )
        axes.plot(middle, height, "o", color=color, ms=5)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_title(f"{title}: change in points, 95 %", fontsize=10)
    axes.grid(axis="x", color=FAINT, lw=0.6)
    axes.set_yticks(range(len(runs)), list(runs) if named else [""] * len(runs), fontsize=8)
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
