"""The command line of recipes/ablate.py."""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dcr_hf.ablation.outcomes import Measuring
from dcr_hf.ablation.plots import draw
from dcr_hf.ablation.summary import markdown
from dcr_hf.ablation.trials import Trial, train_all
from dcr_hf.ablation.variants import COMMON, COMPARED, ORIGINAL, VARIANTS
from dcr_hf.errors import OneLineParser, UserError, as_user_error, exit_on_user_error
from dcr_hf.evaluation.plan import prepare
from dcr_hf.evaluation.scoring.results import write_text, writes_to
from dcr_hf.files import user_path
from dcr_hf.miniature.hard_pairs import ALIKE, BLIND, POOL, write_hard_pairs
from dcr_hf.miniature.layouts import (
    FOR_CHECKPOINTS,
    PAIRS,
    TRAINING_IMAGES,
    TRAINING_SEED,
    write_benchmarks,
    write_training_shards,
)
from dcr_hf.miniature.models import CLIP_FOLDER, DENOISER_FOLDERS, SHIPPED, SIZES
from dcr_hf.miniature.scenes import DRAWS
from dcr_hf.models.families import check_encoder

# What the miniature's scenes are measured by.
BENCHMARKS = [f"mmvp_vlm:{PAIRS}", "clustering:scene_shape", "zeroshot:scene_shape"]
_SIZE = SIZES["mini"].image_size


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is missing; write ablation-DATA.json, .md and .png."""
    with exit_on_user_error():
        options, extra = _parser().parse_known_args(arguments)
        _check(options)
        with as_user_error(f"--launcher {options.launcher}", ValueError):
            launcher = shlex.split(options.launcher)
        shards = Path(options.train_data or options.output_dir / "scenes" / "train")
        common = {"encoder": options.encoder, "denoiser": options.denoiser, "train_data": shards}
        trials = [
            Trial.of(variant, seed, common, extra, options.output_dir, options.num_negatives)
            for seed in dict.fromkeys(options.seeds)
            for variant in options.variants
        ]
        for trial in trials:
            check_encoder(trial.encoder)
        if options.train_data is None:
            write_training_shards(shards, "train", TRAINING_IMAGES, _SIZE, TRAINING_SEED)
        for trial in trials:
            trial.check()
        measuring = _measuring(options)
        for data in filter(None, (measuring.data, measuring.chosen_on)):  # refuse now what could not be measured later
            prepare({ORIGINAL: trials[0].encoder}, options.benchmarks, data)
        train_all(trials, launcher, options.jobs)
        if options.hard_pairs:
            measuring = dataclasses.replace(measuring, also=_hard_pairs(options, trials))
        outcomes = [
            outcome for trial in tqdm(trials, desc="measuring", unit=" runs") for outcome in measuring.outcomes(trial)
        ]
        output = options.output_dir / f"ablation-{measuring.data.name}"
        facts: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "data": measuring.data.name,
            "common": COMMON,
        }
        facts |= {"extra": extra, "chosen_on": measuring.chosen_on and measuring.chosen_on.name}
        write_text(output.with_suffix(".json"), json.dumps(facts | {"runs": outcomes}, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(outcomes))
        with writes_to(options.output_dir):
            draw(outcomes).savefig(output.with_suffix(".png"), dpi=130)
        print(markdown(outcomes))


def _check(options: argparse.Namespace) -> None:
    """Refuse values that cannot be, before anything is drawn or trained."""
    if repeated := {name for name in options.variants if options.variants.count(name) > 1}:
        raise UserError(f"--variants names {min(repeated)} twice.")
    for name, least in (("jobs", 1), ("pairs", 1), ("controls", 0), ("hard_pairs", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: at least {least} is needed.")
    if options.hard_pairs > POOL:
        raise UserError(f"--hard_pairs {options.hard_pairs}: they are chosen from {POOL} of each pattern.")
    if options.hard_pairs and options.data_root is not None:
        raise UserError("--hard_pairs are of the miniature's scenes; with --data_root, leave it out.")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="Train, export and measure variants of DCR on the same data and budget.",
        epilog="Any other option is passed to every run: --stage1_max_steps 1000 --per_device_train_batch_size 8 ...",
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(COMPARED), metavar="NAME",
                        help=f"variants to train: {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each variant")
    parser.add_argument("--encoder", default=str(SHIPPED / CLIP_FOLDER),
                        help="encoder folder or hub id; {seed} stands for the seed")  # fmt: skip
    parser.add_argument(
        "--denoiser",
        default=str(SHIPPED / DENOISER_FOLDERS["epsilon"]),
        help="denoiser folder or hub id; {seed} stands for the seed",
    )
    parser.add_argument("--train_data", help="training data as in a recipe; default: the miniature's scenes")
    parser.add_argument("--data_root", type=user_path, help="benchmark data; default: the miniature's scenes")
    parser.add_argument("--benchmarks", nargs="+", default=BENCHMARKS, help="benchmarks as in recipes/evaluate.py")
    parser.add_argument("--choose_on", type=user_path,
                        help="benchmark data on which a checkpoint of each run is chosen; default: other scenes of "
                             "the miniature, and with --data_root the last checkpoint")  # fmt: skip
    parser.add_argument("--draw", choices=[name for name in DRAWS if name != "train"], default="test",
                        help="draw of the miniature's scenes to report; checkpoints are chosen on dev")  # fmt: skip
    parser.add_argument("--draw_seed", type=int, default=0, help="seed of the scenes in that draw")
    parser.add_argument(
        "--pairs", type=int, default=400, help="pairs of scenes of each of the nine patterns to report"
    )
    parser.add_argument("--hard_pairs", type=int, default=0,
                        help="pairs of each pattern that the original finds alike, to measure too")  # fmt: skip
    parser.add_argument("--controls", type=int, default=0,
                        help="random encoders beside each run, that have moved as far")  # fmt: skip
    parser.add_argument("--num_negatives", type=int, help="of every variant that trains with dcr; default: all")
    parser.add_argument(
        "--launcher",
        default=sys.executable,
        help="command that starts a run, such as 'accelerate launch --num_processes 8'",
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--output_dir", type=user_path, default=Path("out/ablation"), help="for runs and tables")
    return parser


def _measuring(options: argparse.Namespace) -> Measuring:
    scenes, chosen_on = options.output_dir / "scenes", options.choose_on
    data = options.data_root
    if data is None:
        data = scenes / f"{options.draw}{options.draw_seed}"
        write_benchmarks(data, options.draw, _SIZE, options.draw_seed, options.pairs)
        if chosen_on is None and options.draw != "dev":
            chosen_on = scenes / "dev0"
            write_benchmarks(chosen_on, "dev", _SIZE, **FOR_CHECKPOINTS)
    return Measuring(tuple(options.benchmarks), data, chosen_on, options.controls, options.output_dir / "cache")


def _hard_pairs(options: argparse.Namespace, trials: list[Trial]) -> dict[int, list[tuple[str, Path]]]:
    """Sets of pairs that are hard for each seed's original encoder."""
    found = {}
    for seed, encoder in {trial.seed: trial.encoder for trial in trials}.items():
        folder = options.output_dir / f"seed{seed}" / f"pairs-{options.draw}{options.draw_seed}"
        write_hard_pairs(folder, encoder, options.draw, options.hard_pairs, _SIZE, options.draw_seed)
        found[seed] = [("pairs found alike", folder / ALIKE), ("blind pairs", folder / BLIND)]
    return found
