"""A variant with a seed: trained by a recipe's command line, measured by the ordinary evaluation."""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dcr_hf.ablation.variants import COMMON, D_ABILITY, ORIGINAL, P_ABILITY, VARIANTS
from dcr_hf.cli import parse
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.errors import UserError, as_user_error
from dcr_hf.evaluation.scoring.results import Results, read_results, write_text, writes_to
from dcr_hf.export import export_folders
from dcr_hf.miniature.measure import measure_encoders
from dcr_hf.run import check
from dcr_hf.training.plan import plan_stages

FIDELITY = ("noise_mse/own", "noise_mse/view", "noise_mse/other", "noise_mse/empty", "condition_norm")
# The metric of each benchmark that a table shows.
METRICS = {
    "mmvp_vlm": "pair_accuracy",
    "clustering": "nmi",
    "zeroshot": "acc1",
    "linear_probe": "acc1",
    "retrieval": "text_to_image_recall@5",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One variant with one seed.

    Attributes:
        words: the full command line of its run.
        folder: the run's output folder.
        encoder: the encoder that it starts from.
    """

    variant: str
    seed: int
    words: tuple[str, ...]
    folder: Path
    encoder: str

    @classmethod
    def of(cls, variant: str, seed: int, common: dict[str, object], extra: Sequence[str], output: Path) -> "Trial":
        """Make a trial; `{seed}` in a path or id stands for the seed. `extra`, command-line words, take precedence.

        Raises:
            UserError: an unknown option, or one that the variant itself changes.
        """
        options = COMMON | common | VARIANTS[variant] | {"seed": seed, "output_dir": output / f"seed{seed}" / variant}
        words = [
            word.replace("{seed}", str(seed))
            for word in (*(str(part) for name, value in options.items() for part in (f"--{name}", value)), *extra)
        ]
        given = {word.removeprefix("--").split("=")[0] for word in extra if word.startswith("--")}
        if taken := given & {*VARIANTS[variant], "output_dir", "seed", "stage"}:
            raise UserError(f"--{min(taken)} is what the ablation varies ({variant}); leave it out.")
        recipe, args = parse(Recipe(encoder=""), {}, words)
        trains_both = any(plan.trains_projector and plan.trains_encoder for plan in plan_stages(recipe, args))
        if trains_both:  # as many steps as both stages of the others
            words += ["--stage2_max_steps", str(recipe.stage1_max_steps + recipe.stage2_max_steps)]
        return cls(variant, seed, tuple(words), Path(args.output_dir), recipe.encoder)

    @property
    def enhanced(self) -> Path | None:
        """The folder of the enhanced encoder; None for the original."""
        return None if self.variant == ORIGINAL else export_folders(self.encoder, self.folder)[0]

    def parsed(self) -> tuple[Recipe, DCRConfig]:
        return parse(Recipe(encoder=""), {}, list(self.words))

    def check(self) -> None:
        """Check the run's options and inputs before any run is started."""
        if self.enhanced is not None and not self.enhanced.is_dir():
            recipe, args = self.parsed()
            check(recipe, args, plan_stages(recipe, args))

    def train(self, launcher: Sequence[str]) -> None:
        """Train in a separate process. A finished run is not repeated; an interrupted one resumes."""
        if self.enhanced is None or self.enhanced.is_dir():
            return
        with writes_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            log = (self.folder / "log.txt").open("a", encoding="utf-8")
        command = [*launcher, "-m", "dcr_hf.ablation.one", *self.words, "--disable_tqdm", "True"]
        with log, as_user_error(f"--launcher {' '.join(launcher)}", FileNotFoundError, PermissionError):
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{self.variant} with seed {self.seed} ended with {done.returncode}: see {self.folder}/log.txt. Run "
                "the same command again to resume."
            )

    def measure(self, benchmarks: Sequence[str], data: Path, cache: Path) -> Results:
        """Measure beside the original on the same items, once; the report is in the run's folder."""
        report = self.folder / f"report-{data.name}"
        mark, asked = report / "asked.json", {"benchmarks": list(benchmarks), "data": str(data.resolve())}
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asked:
            return read_results(report)
        mark.unlink(missing_ok=True)
        encoders = {ORIGINAL: self.encoder} | ({self.variant: str(self.enhanced)} if self.enhanced else {})
        results = measure_encoders(encoders, data, report, benchmarks, cache)
        write_text(mark, json.dumps(asked))
        return results

    def outcome(self, results: Results) -> dict:
        """{"variant", "seed", "measured": {number: value, change, low, high, p}, "fidelity", "opposed"}"""
        values = {tuple(row[part] for part in _KEY): row["value"] for row in results.results}
        changes = {tuple(row[part] for part in _KEY): row for row in results.comparisons}
        measured = {}
        for title, score in numbers(results).items():
            key = (self.variant, *score)
            row = changes.get(key, {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0})
            measured[title] = {"value": values[key], "change": row["difference"]}
            measured[title] |= {part: row[part] for part in ("low", "high", "p")}
        plans = [] if self.enhanced is None else plan_stages(*self.parsed())
        return {
            "variant": self.variant,
            "seed": self.seed,
            "measured": measured,
            "fidelity": {plan.name: fidelity(plan.folder) for plan in plans},
            "opposed": opposed([plan.folder for plan in plans if plan.trains_encoder]),
        }


def train_all(trials: Sequence[Trial], launcher: Sequence[str], jobs: int) -> None:
    """Train what is missing, `jobs` at a time. When one fails, running ones are finished, no other is started, and its
    error is raised."""
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(trials), desc="training", unit=" runs") as bar:
        runs = [pool.submit(trial.train, launcher) for trial in trials]
        try:
            for run in as_completed(runs):
                run.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_KEY = ("encoder", "benchmark", "dataset", "metric")


def numbers(results: Results) -> dict[str, tuple[str, str, str]]:
    """{title: (benchmark, dataset, metric)}: both abilities first, then all other scores.

    P-Ability is the share of pairs; D-Ability is NMI on the one clustering set, or the mean over several.
    """
    scores = [(row["benchmark"], row["dataset"], row["metric"]) for row in results.results]
    clustered = [dataset for benchmark, dataset, _ in dict.fromkeys(scores) if benchmark == "clustering"]
    found = {}
    if any(benchmark == "mmvp_vlm" for benchmark, _, _ in scores):
        found[P_ABILITY] = ("mmvp_vlm", "all", METRICS["mmvp_vlm"])
    if clustered:
        found[D_ABILITY] = ("clustering", "mean" if "mean" in clustered else clustered[0], METRICS["clustering"])
    for benchmark, dataset, metric in scores:
        if benchmark not in ("mmvp_vlm", "clustering") and metric == METRICS[benchmark]:
            found.setdefault(f"{benchmark} {dataset}", (benchmark, dataset, metric))
    return found


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
