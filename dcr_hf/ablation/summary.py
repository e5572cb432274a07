"""The runs summarised: means and spreads over seeds, changes with intervals, a verdict per claim."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from dcr_hf.ablation.variants import CLAIMS, ORIGINAL
from dcr_hf.evaluation.report.table import markdown_line
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY
from dcr_hf.training.plan import STAGE1

HOLDS, OPPOSITE, NOISE, UNDECIDED = "holds", "the opposite holds", "within noise", "not decided: one seed"


class Spread(NamedTuple):
    """A mean over seeds, its 95 % interval (Student's) and the standard deviation; both are NaN with one seed."""

    mean: float
    low: float
    high: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        mean = float(np.mean(values))
        if len(values) < 2:
            return cls(mean, float("nan"), float("nan"), float("nan"))
        deviation = float(np.std(values, ddof=1))
        half = float(student.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
        return cls(mean, mean - half, mean + half, deviation)


class Change(NamedTuple):
    """The change by training over the seeds, and in how many of them it was beyond noise, up and down."""

    over_seeds: Spread
    low: float
    high: float
    better: int
    worse: int
    seeds: int


def by_variant(found: list[dict]) -> dict[str, list[dict]]:
    return {
        name: [each for each in found if each["variant"] == name]
        for name in dict.fromkeys(each["variant"] for each in found)
    }


def value(runs: list[dict], title: str) -> Spread:
    return Spread.of([each["measured"][title]["value"] for each in runs])


def change(runs: list[dict], title: str) -> Change:
    """The change against the original of the same seed. With one seed: the run's own interval, over its items."""
    measured = [each["measured"][title] for each in runs]
    spread = Spread.of([each["change"] for each in measured])
    low, high = (spread.low, spread.high) if len(runs) > 1 else (measured[0]["low"], measured[0]["high"])
    return Change(
        spread,
        low,
        high,
        better=sum(each["p"] < 0.05 and each["change"] > 0 for each in measured),
        worse=sum(each["p"] < 0.05 and each["change"] < 0 for each in measured),
        seeds=len(runs),
    )


def verdicts(found: list[dict]) -> list[tuple[str, str, Spread]]:
    """(the paper's claim, whether it holds here, the difference over the seeds) for each claim whose variants ran.

    The naive sum's claim is about its gradients: the share of steps in which they oppose each other, minus a half.
    """
    runs, lines = by_variant(found), []
    for claim in CLAIMS:
        if {claim.better, claim.worse} <= runs.keys() and claim.ability in runs[claim.better][0]["measured"]:
            values = {name: _by_seed(runs[name], claim.ability) for name in (claim.better, claim.worse)}
            seeds = sorted(values[claim.better].keys() & values[claim.worse].keys())
            spread = Spread.of([values[claim.better][seed] - values[claim.worse][seed] for seed in seeds])
            lines.append((claim.statement, _verdict(spread), spread))
    shares = [each["opposed"] for each in runs.get("joint", []) if each["opposed"] is not None]
    if shares:
        spread = Spread.of([share - 0.5 for share in shares])
        lines.append(("the naive sum's gradients oppose each other in most steps", _verdict(spread), spread))
    return lines


def _by_seed(runs: list[dict], title: str) -> dict[int, float]:
    return {each["seed"]: each["measured"][title]["value"] for each in runs}


def _verdict(spread: Spread) -> str:
    if np.isnan(spread.low):
        return UNDECIDED
    return HOLDS if spread.low > 0 else OPPOSITE if spread.high < 0 else NOISE


def markdown(found: list[dict]) -> str:
    """Two tables: the variants, and the paper's claims. The original's values in percent, else changes in points."""
    runs = by_variant(found)
    titles = list(found[0]["measured"])
    seeds = len(dict.fromkeys(each["seed"] for each in found))
    header = ["", "steps; moved", *titles]
    lines = [markdown_line([*header, "noise MSE own / other, stage 1"]), markdown_line(["---"] * (len(header) + 1))]
    for variant, each in runs.items():
        cells = [_cell(variant, each, title) for title in titles]
        lines.append(markdown_line([variant, _chosen(each), *cells, _fidelity(each)]))
    over = f"over {seeds} seeds: mean and deviation" if seeds > 1 else "with one seed"
    note = (
        f"The first row has values in percent ({over}), the others changes in points against it, their 95 % interval"
    )
    lines += ["", f"{note}, and in how many seeds the change was beyond noise by itself, up and down.", ""]
    judged = verdicts(found)
    if judged:
        lines += [markdown_line(["the paper says", "here", "difference (95 %)"]), markdown_line(["---"] * 3)]
        lines += [markdown_line([claim, f"**{verdict}**", _points(spread)]) for claim, verdict, spread in judged]
    return "\n".join(lines) + "\n"


def _chosen(runs: list[dict]) -> str:
    """The chosen steps, a seed each, and the mean distance."""
    if any(each.get("step") is None for each in runs):
        return ""
    steps = ", ".join(str(each["step"]) for each in runs)
    return f"{steps}; {np.mean([each['moved'] for each in runs]):.3f}"


def _cell(variant: str, runs: list[dict], title: str) -> str:
    if variant == ORIGINAL:
        spread = value(runs, title)
        return f"{100 * spread.mean:.1f}" + ("" if np.isnan(spread.deviation) else f" ± {100 * spread.deviation:.1f}")
    moved = change(runs, title)
    points = _points(moved.over_seeds._replace(low=moved.low, high=moved.high))
    return f"{points}, {moved.better}↑ {moved.worse}↓"


def _points(spread: Spread) -> str:
    ends = "" if np.isnan(spread.low) else f" ({100 * spread.low:+.1f} to {100 * spread.high:+.1f})"
    return f"{100 * spread.mean:+.1f}{ends}"


def _fidelity(runs: list[dict]) -> str:
    found = [each["fidelity"].get(STAGE1, {}) for each in runs]
    if not all("noise_mse/own" in each for each in found):
        return ""
    return " / ".join(f"{np.mean([each[f'noise_mse/{name}'] for each in found]):.3f}" for name in ("own", "other"))


def abilities(found: list[dict]) -> tuple[str, ...]:
    """The abilities that were measured."""
    return tuple(title for title in (P_ABILITY, D_ABILITY) if title in found[0]["measured"])
