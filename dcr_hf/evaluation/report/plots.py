"""The report's figures as data URIs: radar of MMVP's categories, clustering bars, t-SNE maps."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from dcr_hf.errors import as_user_error
from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.plotting import COLORS, FAINT, INK, STYLE, figure_uri


def encoder_colors(results: Results) -> dict[str, str]:
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(results.encoders)}


def radar(results: Results) -> str:
    """Pair accuracy in each of MMVP-VLM's nine categories, one line per encoder."""
    values = {
        (row["encoder"], row["dataset"]): 100 * row["value"]
        for row in results.results
        if row["benchmark"] == "mmvp_vlm"
    }
    encoders = dict.fromkeys(name for name, _ in values)
    lines = {encoder: [values[encoder, category] for category in CATEGORIES] for encoder in encoders}
    return radar_of(CATEGORIES, lines, encoder_colors(results), [25] * len(CATEGORIES), "chance (25 %)")


def radar_of(
    labels: Sequence[str],
    lines: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
    chance: Sequence[float],
    chance_label: str,
) -> str:
    """A radar plot in percent over at least three axes: one line per model, by name; `chance` is dotted."""
    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    # Where chance is the same everywhere it is a circle, else a polygon like the lines.
    around = np.linspace(0, 2 * np.pi, 200) if len(set(chance)) == 1 else np.array([*angles, angles[0]])
    guessed = np.full(200, chance[0]) if len(set(chance)) == 1 else np.array([*chance, chance[0]])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.4))
        axes = figure.add_subplot(projection="polar", theta_offset=np.pi / 2, theta_direction=-1)
        for name, line in lines.items():
            axes.plot([*angles, angles[0]], [*line, line[0]], color=colors[name], lw=2, label=name)
            axes.fill(angles, line, color=colors[name], alpha=0.10)
        axes.plot(around, guessed, color=INK, lw=1, ls=":", label=chance_label)
        axes.set_xticks(angles, [textwrap.fill(label, 16) for label in labels])
        axes.tick_params(axis="x", pad=8)
        for label, sine in zip(axes.get_xticklabels(), np.sin(angles), strict=True):  # beside the circle, not on it
            label.set_horizontalalignment("center" if abs(sine) < 0.1 else "left" if sine > 0 else "right")
        top = max(40, 10 * np.ceil(max(max(line) for line in lines.values()) / 10))
        rings = np.arange(20, top + 1, 20)
        axes.set_ylim(0, top)
        axes.set_yticks(rings, [f"{ring:.0f} %" for ring in rings], color="#62707d", fontsize=9)
        cast(PolarAxes, axes).set_rlabel_position(20)
        axes.grid(color=FAINT)
        axes.spines["polar"].set_color(FAINT)
        axes.legend(loc="upper left", bbox_to_anchor=(1.22, 1.08), frameon=False)
        return figure_uri(figure)


def clustering_bars(results: Results) -> str:
    """NMI, ACC and ARI of each set with 95 % intervals, one bar per encoder."""
    colors = encoder_colors(results)
    rows = [row for row in results.results if row["benchmark"] == "clustering"]
    sets = list(dict.fromkeys(row["dataset"] for row in rows))
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    width = 0.8 / len(encoders)
    with matplotlib.rc_context(STYLE):
        few = len(sets) <= 2  # side by side, since a bar would be as wide as the page
        figure = Figure(figsize=(7.5, 3.4) if few else (1.4 * len(sets) + 2, 7.5), layout="constrained")
        panels = figure.subplots(*(1, 3) if few else (3, 1), sharex=True)
        for axes, metric in zip(panels, ("nmi", "acc", "ari"), strict=True):
            for index, encoder in enumerate(encoders):
                chosen = {row["dataset"]: row for row in rows if (row["encoder"], row["metric"]) == (encoder, metric)}
                places = [sets.index(name) + (index - (len(encoders) - 1) / 2) * width for name in chosen]
                heights = np.array([100 * row["value"] for row in chosen.values()])
                ends = np.array([[100 * row["low"], 100 * row["high"]] for row in chosen.values()]).T
                errors = np.abs(ends - heights)
                axes.bar(places, heights, width * 0.92, color=colors[encoder], label=encoder)
                axes.errorbar(places, heights, yerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
            axes.set_ylabel(f"{metric.upper()} (%)")
            axes.grid(axis="y", color=FAINT, lw=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(length=0)
        for axes in panels if few else panels[-1:]:
            axes.set_xticks(range(len(sets)), sets)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False)
        return figure_uri(figure)


def tsne_map(path: str | Path, title: str) -> str:
    """A scatter plot of one encoder's map, coloured by class; a legend names up to twenty classes."""
    with as_user_error(f"map {path}", OSError, json.JSONDecodeError, UnicodeDecodeError):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    points, labels = np.array(content["points"]), np.array(content["labels"])
    present = np.unique(labels)
    palette = matplotlib.colormaps["tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "turbo"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.6))
        axes = figure.add_subplot()
        for index, label in enumerate(present):
            color = palette(index) if len(present) <= 20 else palette(index / len(present))
            name = textwrap.shorten(content["class_names"][label], 22)
            size = np.clip(4000 / len(points), 9, 40)
            x, y = points[labels == label].T
            axes.scatter(x, y, s=size, color=color, lw=0, alpha=0.85, label=name)
        axes.set_title(title, fontsize=12, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if len(present) <= 20:
            legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False, fontsize=9)
            for handle in legend.legend_handles:
                if isinstance(handle, PathCollection):
                    handle.set_sizes([45])
        return figure_uri(figure, "png")
