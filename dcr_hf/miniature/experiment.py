"""The experiment of docs/miniature.md: ways to train, on several pretraining seeds and draws, laid side by side."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student
from tqdm import tqdm

from dcr_hf.evaluation.results import read_results
from dcr_hf.miniature.layouts import write_benchmarks, write_training_shards
from dcr_hf.miniature.measure import measure_encoders, write_json
from dcr_hf.miniature.models import SIZES
from dcr_hf.miniature.pretrain import CLIP_FOLDER, DENOISER_FOLDERS
from dcr_hf.miniature.scenes import DRAWS
from dcr_hf.stages import STAGE1, STAGE2

TRAINING_IMAGES, TRAINING_SEED = 8_000, 100
ORIGINAL = "original"
# What is common; a variant states what differs. The paper's batch and temperature, its stages shortened to this size.
COMMON = {
    "stage1_max_steps": 200,
    "stage1_learning_rate": 1e-3,
    "stage2_max_steps": 200,
    "stage2_learning_rate": 1e-4,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 1,
    "save_steps": 100,
    "save_total_limit": 1,
    "logging_steps": 10,
    "report_to": "none",
}
VARIANTS: dict[str, dict[str, object]] = {
    "dcr": {},
    "short stage 1": {"stage1_max_steps": 50},
    "long stage 1": {"stage1_max_steps": 800},
    "slow stage 1": {"stage1_learning_rate": 1e-4},
    "temperature 0.02": {"temperature": 0.02},
    "temperature 0.5": {"temperature": 0.5},
    "gentle stage 2": {"stage2_learning_rate": 2e-5},
    "reconstruction first": {"stage1_objective": "reconstruction"},
    "reconstruction first, residual": {"stage1_objective": "reconstruction", "contrast_space": "residual"},
    "reconstruction": {"objective": "reconstruction"},
}
MEASURED = {
    "P: pairs": ("mmvp_vlm", "all", "pair_accuracy"),
    "D: NMI": ("clustering", "scene_shape", "nmi"),
    "D: zero-shot shape": ("zeroshot", "scene_shape", "acc1"),
    "probe of shape": ("linear_probe", "scene_shape", "acc1"),
}
BENCHMARKS = [
    "mmvp_vlm:scene_pairs",
    "clustering:scene_shape",
    "zeroshot:scene_shape",
    "linear_probe:scene_shape",
]
FIDELITY = ("noise_mse/own", "noise_mse/view", "noise_mse/other", "noise_mse/empty", "condition_norm")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One variant on one pretrained pair of models."""

    pretrained: Path
    kind: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.variant}"

    def folder(self, output: Path) -> Path:
        return output / self.pretrained.name / f"{self.kind}-{self.variant.replace(' ', '_').replace(',', '')}"


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is not done yet, write results-DRAW.json, results-DRAW.md and results-DRAW.png."""
    parser = argparse.ArgumentParser(
        description="Train and measure variants of DCR on the miniature.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        nargs="+",
        required=True,
        help="folders of recipes/pretrain_miniature.py, a seed each",
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--prediction_type", nargs="+", choices=list(DENOISER_FOLDERS), default=list(DENOISER_FOLDERS))
    parser.add_argument("--draw", choices=[name for name in DRAWS if name != "train"], default="dev")
    parser.add_argument("--draw_seed", type=int, default=0, help="other scenes of the same draw")
    options = parser.parse_args(arguments)
    for folder in options.pretrained:
        for part in (CLIP_FOLDER, *(DENOISER_FOLDERS[kind] for kind in options.prediction_type)):
            if not (folder / part).is_dir():
                parser.error(f"--pretrained {folder} lacks {part}: make it by recipes/pretrain_miniature.py")
    trials = [
        Trial(folder, kind, variant)
        for folder in options.pretrained
        for kind in options.prediction_type
        for variant in options.variants
    ]
    size = SIZES["mini"].image_size
    shards = options.output_dir / "train"
    if not shards.is_dir():
        unfinished = shards.with_name(".train.unfinished")
        write_training_shards(unfinished, "train", TRAINING_IMAGES, size, TRAINING_SEED)
        unfinished.rename(shards)
    for trial in tqdm(trials, desc="trials", unit=" runs"):
        train(trial, shards, options.output_dir)
    data = options.output_dir / f"{options.draw}{options.draw_seed}"
    write_benchmarks(data, options.draw, size, options.draw_seed)
    found = [outcome(trial, data, options.output_dir) for trial in tqdm(trials, desc="measuring", unit=" runs")]
    place = options.output_dir / f"results-{data.name}"
    write_json(place.with_suffix(".json"), {"draw": data.name, "common": COMMON, "trials": found})
    rows = summarise(found)
    place.with_suffix(".md").write_text(table(rows))
    plot(rows, place.with_suffix(".png"))
    print(table(rows))


def train(trial: Trial, shards: Path, output: Path) -> None:
    """In a process of its own, as a user would. A finished run is left, an interrupted one goes on."""
    folder = trial.folder(output)
    if (folder / f"{CLIP_FOLDER}-dcr").is_dir():
        return
    options = COMMON | VARIANTS[trial.variant]
    options |= {
        "encoder": trial.pretrained / CLIP_FOLDER,
        "denoiser": trial.pretrained / DENOISER_FOLDERS[trial.kind],
        "train_data": shards,
        "output_dir": folder,
        "disable_tqdm": True,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    program = "from dcr_hf.config import Recipe; from dcr_hf.run import main; main(Recipe(encoder=''))"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run([sys.executable, "-c", program, *words], stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"{trial.name} of {trial.pretrained} ended with {done.returncode}: see {folder}/log.txt")


def outcome(trial: Trial, data: Path, output: Path) -> dict:
    """Before, after and the paired difference of each number; the condition's fidelity at the end of both stages."""
    report = trial.folder(output) / f"report-{data.name}"
    if not (report / "results.json").is_file():
        encoders = {
            ORIGINAL: str(trial.pretrained / CLIP_FOLDER),
            "dcr": str(trial.folder(output) / f"{CLIP_FOLDER}-dcr"),
        }
        measure_encoders(encoders, data, report, BENCHMARKS, cache=output / "cache")
    results = read_results(report)
    values = {
        (row["encoder"], row["benchmark"], row["dataset"], row["metric"]): row["value"] for row in results.results
    }
    differences = {(row["benchmark"], row["dataset"], row["metric"]): row for row in results.comparisons}
    return {
        "pretrained": trial.pretrained.name,
        "trial": trial.name,
        "measured": {
            title: {
                "before": values[ORIGINAL, *place],
                "after": values["dcr", *place],
                **{part: differences[place][part] for part in ("difference", "low", "high", "p")},
            }
            for title, place in MEASURED.items()
        },
        "fidelity": {stage: fidelity(trial.folder(output) / stage) for stage in (STAGE1, STAGE2)},
    }


def fidelity(stage: Path) -> dict[str, float]:
    """Means over the last fifth of the stage's log."""
    log = json.loads((stage / "trainer_state.json").read_text())["log_history"]
    lines = [line for line in log if "condition_norm" in line]
    last = lines[-max(1, len(lines) // 5) :]
    return {name: float(np.mean([line[name] for line in last])) for name in FIDELITY if name in last[0]}


def summarise(found: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{trial: {number: mean difference over the pretraining seeds with its interval, and how many seeds agree}}.

    With one seed the interval is the run's own (items drawn again); with several it is Student's over the seeds, which
    covers what another pretraining would change.
    """
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for trial in dict.fromkeys(each["trial"] for each in found):
        runs = [each for each in found if each["trial"] == trial]
        rows[trial] = {}
        for title in MEASURED:
            measured = [each["measured"][title] for each in runs]
            changes = np.array([each["difference"] for each in measured])
            mean = changes.mean()
            low, high = measured[0]["low"], measured[0]["high"]
            if len(changes) > 1:
                half = student.ppf(0.975, len(changes) - 1) * changes.std(ddof=1) / np.sqrt(len(changes))
                low, high = mean - half, mean + half
            rows[trial][title] = {
                "before": float(np.mean([each["before"] for each in measured])),
                "difference": float(mean),
                "low": float(low),
                "high": float(high),
                "better": sum(each["p"] < 0.05 and each["difference"] > 0 for each in measured),
                "worse": sum(each["p"] < 0.05 and each["difference"] < 0 for each in measured),
                "seeds": len(measured),
            }
        rows[trial]["fidelity"] = {
            f"{stage}/{name}": float(np.mean([each["fidelity"][stage][name] for each in runs]))
            for stage in (STAGE1, STAGE2)
            for name in runs[0]["fidelity"][stage]
        }
    return rows


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: differences in points with 95 % intervals, and how many seeds moved beyond noise, up and down."""
    header = [
        "",
        *(f"{title} (before {_before(rows, title)})" for title in MEASURED),
        "noise MSE own / other, stage 1",
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    for trial, row in rows.items():
        cells = [
            f"{100 * each['difference']:+.1f} ({100 * each['low']:+.1f} to {100 * each['high']:+.1f}), "
            f"{each['better']}↑ {each['worse']}↓ of {each['seeds']}"
            for each in (row[title] for title in MEASURED)
        ]
        own, other = (row["fidelity"][f"{STAGE1}/noise_mse/{name}"] for name in ("own", "other"))
        lines.append(_line([trial, *cells, f"{own:.3f} / {other:.3f}"]))
    return "\n".join(lines) + "\n"


def _before(rows: dict, title: str) -> str:
    return f"{100 * np.mean([row[title]['before'] for row in rows.values()]):.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(rows: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Both abilities' changes with their intervals, a line a trial."""
    titles = ("P: pairs", "D: NMI")
    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.4), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        for place, row in enumerate(rows.values()):
            low, middle, high = (100 * row[title][part] for part in ("low", "difference", "high"))
            color = "#009e73" if low > 0 else "#d55e00" if high < 0 else "#7b8794"
            axes.plot([low, high], [place, place], color=color, lw=2)
            axes.plot(middle, place, "o", color=color, ms=5)
        axes.axvline(0, color="#1f2933", lw=0.8)
        axes.set_title(f"{title}: change in points, 95 %", fontsize=10)
        axes.grid(axis="x", color="#d5dbe1", lw=0.6)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.invert_yaxis()
    figure.savefig(path, dpi=130)
