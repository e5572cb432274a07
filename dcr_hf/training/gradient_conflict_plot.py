"""What a run's log says about its gradients' conflict, as a file of numbers and a picture."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from dcr_hf.plotting import COLORS, FAINT, INK, STYLE
from dcr_hf.training.gradient_conflict import COSINE, LAYER, NORM


def write_conflict(folder: Path, log_history: list[dict[str, Any]]) -> None:
    """gradient_conflict.json and .png in `folder`, if the log of a run holds any measurement."""
    lines = [line for line in log_history if COSINE in line]
    if not lines:
        return
    keys = {key for line in lines for key in line}  # a log that was read back has its keys in another order
    losses = sorted(key.removeprefix(NORM) for key in keys if key.startswith(NORM))
    layers = sorted((key.removeprefix(LAYER) for key in keys if key.startswith(LAYER)), key=_place)
    cosines = [line[COSINE] for line in lines]
    facts = {
        "losses": losses,
        "measured_steps": len(lines),
        "negative_share": sum(cosine < 0 for cosine in cosines) / len(lines),
        "mean_cosine": sum(cosines) / len(lines),
        "steps": [line["step"] for line in lines],
        "cosines": cosines,
        "norms": {loss: [line[NORM + loss] for line in lines] for loss in losses},
        # None where a layer's gradient vanished.
        "layers": {layer: [line.get(LAYER + layer) for line in lines] for layer in layers},
    }
    (folder / "gradient_conflict.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draw(facts).savefig(folder / "gradient_conflict.png", dpi=150, bbox_inches="tight")


def _place(layer: str) -> tuple:
    """From the pixels on: what comes before the transformer's layers, those by number, what comes after."""
    if layer.isdecimal():
        return 1, int(layer)
    return 0 if layer in ("embeddings", "pre_layrnorm") else 2, layer


def draw(facts: dict[str, Any]) -> Figure:
    """A histogram of the cosine over the steps, and a heat map of it over layers and steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.8 + max(2.6, 0.24 * len(facts["layers"]))), layout="constrained")
        over_steps, over_layers = figure.subplots(1, 2, width_ratios=(1, 1.6))
        _histogram(over_steps, facts)
        _heat_map(figure, over_layers, facts)
    return figure


def _histogram(axes, facts: dict[str, Any]) -> None:
    cosines = np.array(facts["cosines"])
    edge = max(0.05, 1.05 * np.abs(cosines).max())
    _, edges, bars = axes.hist(cosines, bins=np.linspace(-edge, edge, 31))
    for left, bar in zip(edges, bars, strict=False):
        bar.set_facecolor(COLORS[1] if left < -1e-9 else COLORS[2])
    axes.axvline(0, color=INK, linewidth=1)
    first, second = facts["losses"]
    axes.set_xlabel(f"cosine between the gradients of {first} and {second}")
    axes.set_ylabel("measured steps")
    axes.set_title(f"below zero in {facts['negative_share']:.1%} of {facts['measured_steps']:,} steps", fontsize=11)


def _heat_map(figure: Figure, axes, facts: dict[str, Any]) -> None:
    names = list(facts["layers"])
    table = np.array(list(facts["layers"].values()), dtype=float)  # (layers, steps), NaN where there is no cosine
    edge = max(0.05, np.nanmax(np.abs(table)))
    colors = LinearSegmentedColormap.from_list("conflict", (COLORS[1], "white", COLORS[2])).with_extremes(bad=FAINT)
    image = axes.imshow(table, aspect="auto", cmap=colors, vmin=-edge, vmax=edge, interpolation="nearest")
    ticks = np.unique(np.linspace(0, len(facts["steps"]) - 1, 6).round().astype(int))
    axes.set_xticks(ticks, [facts["steps"][tick] for tick in ticks])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="cosine")
