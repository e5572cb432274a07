"""What a trial led to: a checkpoint chosen on one draw, measured once on another beside its random controls."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dcr_hf.ablation.trials import Trial
from dcr_hf.ablation.variants import ORIGINAL, control_of
from dcr_hf.diagnostics.control import write_controls
from dcr_hf.diagnostics.curve import Point, choose, measure_curve, read_curve, write_curve
from dcr_hf.evaluation.scoring.abilities import measured
from dcr_hf.evaluation.scoring.results import Results, read_results, write_text
from dcr_hf.miniature import hard_pairs, layouts
from dcr_hf.miniature.measure import measure_encoders
from dcr_hf.training.plan import plan_stages

FIDELITY = ("noise_mse/own", "noise_mse/view", "noise_mse/other", "noise_mse/empty", "condition_norm")


@dataclass(frozen=True)
class Measuring:
    """What is measured, and on which data.

    Attributes:
        benchmarks: as in recipes/evaluate.py.
        data: what is reported.
        chosen_on: data on which a checkpoint is chosen, see `curve.choose`; None takes a run's last.
        controls: random encoders beside each run.
        cache: folder of embeddings.
        also: by seed, (title, folder) of more sets of pairs in MMVP's layout.
    """

    benchmarks: tuple[str, ...]
    data: Path
    chosen_on: Path | None
    controls: int
    cache: Path
    also: Mapping[int, Sequence[tuple[str, Path]]] = field(default_factory=dict)

    def outcomes(self, trial: Trial) -> list[dict]:
        """The trial's and, if there are any, its controls'.

        Each: {"variant", "seed", "step", "moved", "measured": {number: value, change, low, high, p}, "fidelity",
        "opposed"}; what is measured of several controls is their mean, and `spread` the deviation of their changes.
        """
        if trial.enhanced is None:
            results = self._measure(trial, {ORIGINAL: trial.encoder}, "original")
            return [_outcome(trial, None, results(ORIGINAL)) | {"fidelity": {}, "opposed": None}]
        point = self._chosen(trial)
        step = "last" if point is None else f"step{point.step}"
        controls = self._controls(trial, point, step)
        found = self._measure(
            trial,
            {ORIGINAL: trial.encoder, trial.variant: str(trial.enhanced if point is None else point.folder)}
            | {f"random{number}": str(folder) for number, folder in enumerate(controls)},
            step,
        )
        plans = plan_stages(*trial.parsed())
        own = _outcome(trial, point, found(trial.variant)) | {
            "fidelity": {plan.name: fidelity(plan.folder) for plan in plans},
            "opposed": opposed([plan.folder for plan in plans if plan.trains_encoder]),
        }
        if not controls:
            return [own]
        random = _mean([found(f"random{number}") for number in range(len(controls))])
        return [own, own | {"variant": control_of(trial.variant), "measured": random, "fidelity": {}, "opposed": None}]

    def _chosen(self, trial: Trial) -> Point | None:
        if self.chosen_on is None:
            return None
        folder = trial.folder / f"curve-{self.chosen_on.name}"
        asked = _asked(self.benchmarks, self.chosen_on)
        if not _is_done(folder, asked):
            points = measure_curve(trial.folder, self.benchmarks, self.chosen_on, folder, self.cache, batch_size=256)
            assert points is not None  # one process
            write_curve(points, folder)
            _mark_done(folder, asked)
        return choose(read_curve(folder))

    def _controls(self, trial: Trial, point: Point | None, step: str) -> list[Path]:
        if not self.controls:
            return []
        folder = trial.folder / "control" / step
        asked = {"controls": self.controls}
        if not _is_done(folder, asked):
            shutil.rmtree(folder, ignore_errors=True)
            checkpoint = None if point is None else Path(point.folder)
            write_controls(trial.folder, list(range(self.controls)), folder, checkpoint)
            _mark_done(folder, asked)
        return [folder / str(number) for number in range(self.controls)]

    def _measure(self, trial: Trial, encoders: dict[str, str], step: str):
        """encoder -> its numbers, measured beside the original on the same items, once."""
        folder = trial.folder / f"report-{self.data.name}-{step}"
        parts: list[tuple[str | None, Results]] = []
        jobs: list[tuple[str | None, tuple[str, ...], Path, Path]] = [(None, self.benchmarks, self.data, folder)]
        jobs += [
            (title, (f"mmvp_vlm:{of.name}",), of.parent, folder / of.name)
            for title, of in self.also.get(trial.seed, ())
        ]
        for title, benchmarks, data, output in jobs:
            asked = _asked(benchmarks, data) | {"encoders": list(encoders)}
            if not _is_done(output, asked):
                measure_encoders(encoders, data, output, benchmarks, self.cache, page=False)
                _mark_done(output, asked)
            parts.append((title, read_results(output)))

        def numbers(encoder: str) -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = {}
            for title, results in parts:
                of_part = measured(results, encoder)
                found |= of_part if title is None else {title: next(iter(of_part.values()))}
            return found

        return numbers


def _outcome(trial: Trial, point: Point | None, numbers: dict[str, dict[str, float]]) -> dict:
    step, moved = (None, None) if point is None else (point.step, point.moved)
    return {"variant": trial.variant, "seed": trial.seed, "step": step, "moved": moved, "measured": numbers}


def _mean(draws: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of several controls. An interval is the mean of theirs: each is over the same items."""
    found: dict[str, dict[str, float]] = {}
    for title in draws[0]:
        rows = [each[title] for each in draws]
        found[title] = {part: float(np.mean([row[part] for row in rows])) for part in rows[0]}
        found[title]["spread"] = float(np.std([row["change"] for row in rows]))
    return found


def _asked(benchmarks: Sequence[str], data: Path) -> dict:
    """What a measurement depends on: scenes in the same folder may have been drawn again, others or more of them."""
    marks = [data / name for name in (layouts.MARK, hard_pairs.MARK)]
    drawn = [mark.read_text(encoding="utf-8") for mark in marks if mark.is_file()]
    return {"benchmarks": list(benchmarks), "data": str(data.resolve()), "drawn": drawn}


def _is_done(folder: Path, asked: dict) -> bool:
    mark = folder / "asked.json"
    return mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asked


def _mark_done(folder: Path, asked: dict) -> None:
    write_text(folder / "asked.json", json.dumps(asked))


def fidelity(stage: Path) -> dict[str, float]:
    """The fidelity of the conditions at the end of a stage: means over the last fifth of its log."""
    log = json.loads((stage / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    lines = [line for line in log if "condition_norm" in line]
    last = lines[-max(1, len(lines) // 5) :]
    return {name: float(np.mean([line[name] for line in last])) for name in FIDELITY if last and name in last[0]}


def opposed(stages: Sequence[Path]) -> float | None:
    """The share of measured steps in which two losses' gradients opposed each other; None if not logged."""
    found = [stage / "gradient_conflict.json" for stage in stages]
    return next(
        (json.loads(path.read_text(encoding="utf-8"))["negative_share"] for path in found if path.is_file()), None
    )
