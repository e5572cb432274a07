"""The results on scatter as a table and a figure."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dcr_hf.diagnostics.scatter import WAYS, squared_distances
from dcr_hf.plotting import COLORS, FAINT, INK, STYLE

ROWS = {
    "embeddings": "scatter of embeddings",
    "predictions": "scatter of predictions",
    "ratio": "ratio",
    "m": "m",
    "bound": "bound on the ratio, 1 / m²",
    "share_of_bound": "ratio / bound",
}


def markdown(summary: Mapping[str, Any]) -> str:
    """The table of `scatter.over_seeds`, and the share of each scatter that is between classes."""
    lines = ["| | within classes | between classes |", "|---|---|---|"]
    for name, title in ROWS.items():
        cells = [f"{summary[way][name]['mean']:.4g} ± {summary[way][name]['std']:.2g}" for way in WAYS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    shares = [f"{space} {between_share(summary, space):.1%}" for space in ("embeddings", "predictions")]
    return "\n".join([*lines, "", f"Share of scatter between classes: {', '.join(shares)}."])


def between_share(summary: Mapping[str, Any], space: str) -> float:
    within, between = (summary[way][space]["mean"] for way in WAYS)
    return between / (within + between)


def draw(embeddings: np.ndarray, predictions: np.ndarray, labels: np.ndarray, m: float, title: str) -> Figure:
    """Plot each pair of images by its squared distances in both spaces, above the line with slope m^2."""
    first, second = np.triu_indices(len(labels), k=1)
    same = labels[first] == labels[second]
    x, y = squared_distances(embeddings), squared_distances(predictions)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        axes = figure.add_subplot()
        size = float(np.clip(20_000 / len(x), 4, 20))
        for chosen, name, color in ((~same, "of two classes", COLORS[2]), (same, "of one class", COLORS[1])):
            axes.scatter(x[chosen], y[chosen], s=size, lw=0, alpha=0.5, color=color, label=f"pairs {name}")
        axes.plot([0, x.max()], [0, m**2 * x.max()], color=INK, lw=1.5, label=f"slope $m^2$ = {m**2:.3g}")
        axes.set_xlabel("squared distance of embeddings at unit length")
        axes.set_ylabel("squared distance of predictions at unit length")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.grid(color=FAINT, lw=0.7)
        axes.set_axisbelow(True)
        axes.set_title(title, fontsize=11, loc="left")
        axes.legend(frameon=False, fontsize=9, loc="upper left", markerscale=2.5)
    return figure
