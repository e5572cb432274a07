"""The command line of recipes/ablate.py."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from dcr_hf.ablation.plots import draw
from dcr_hf.ablation.summary import markdown
from dcr_hf.ablation.trials import Trial, train_all
from dcr_hf.ablation.variants import COMMON, COMPARED, ORIGINAL, VARIANTS
from dcr_hf.errors import OneLineParser, UserError, as_user_error, exit_on_user_error
from dcr_hf.evaluation.plan import prepare
from dcr_hf.evaluation.scoring.results import write_text, writes_to
from dcr_hf.files import user_path
from dcr_hf.miniature.layouts import PAIRS, TRAINING_IMAGES, TRAINING_SEED, write_benchmarks, write_training_shards
from dcr_hf.miniature.models import CLIP_FOLDER, DENOISER_FOLDERS, SHIPPED, SIZES
from dcr_hf.miniature.scenes import DRAWS
from dcr_hf.models.families import check_encoder

# What the miniature's scenes are measured by.
BENCHMARKS = [f"mmvp_vlm:{PAIRS}", "clustering:scene_shape", "zeroshot:scene_shape", "linear_probe:scene_shape"]
_SIZE = SIZES["mini"].image_size


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is missing; write ablation-DATA.json, .md and .png."""
    with exit_on_user_error():
        options, extra = _parser().parse_known_args(arguments)
        if repeated := {name for name in options.variants if options.variants.count(name) > 1}:
            raise UserError(f"--variants names {min(repeated)} twice.")
        if options.jobs < 1:
            raise UserError(f"--jobs {options.jobs}: at least 1 is needed.")
        with as_user_error(f"--launcher {options.launcher}", ValueError):
            launcher = shlex.split(options.launcher)
        shards = Path(options.train_data or options.output_dir / "scenes" / "train")
        common = {"encoder": options.encoder, "denoiser": options.denoiser, "train_data": shards}
        trials = [
            Trial.of(variant, seed, common, extra, options.output_dir)
            for seed in dict.fromkeys(options.seeds)
            for variant in options.variants
        ]
        for trial in trials:
            check_encoder(trial.encoder)
        if options.train_data is None:
            write_training_shards(shards, "train", TRAINING_IMAGES, _SIZE, TRAINING_SEED)
        for trial in trials:
            trial.check()
        data = _data(options)
        prepare({ORIGINAL: trials[0].encoder}, options.benchmarks, data)  # refuse now what could not be measured later
        train_all(trials, launcher, options.jobs)
        cache = options.output_dir / "cache"
        outcomes = [
            trial.outcome(trial.measure(options.benchmarks, data, cache))
            for trial in tqdm(trials, desc="measuring", unit=" runs")
        ]
        output = options.output_dir / f"ablation-{data.name}"
        facts = {"command": shlex.join(["python", *sys.argv]), "data": data.name, "common": COMMON, "extra": extra}
        write_text(output.with_suffix(".json"), json.dumps(facts | {"runs": outcomes}, indent=1) + "\n")
        write_text(output.with_suffix(".md"), markdown(outcomes))
        with writes_to(options.output_dir):
            draw(outcomes).savefig(output.with_suffix(".png"), dpi=130)
        print(markdown(outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="Train, export and measure variants of DCR on the same data and budget.",
        epilog="Any other option is passed to every run: --stage1_max_steps 1000 --per_device_train_batch_size 8 ...",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    parser.add_argument("--draw", choices=[name for name in DRAWS if name != "train"], default="dev",
                        help="draw of the miniature's scenes to measure on")  # fmt: skip
    parser.add_argument("--draw_seed", type=int, default=0, help="seed of the scenes in that draw")
    parser.add_argument(
        "--launcher",
        default=sys.executable,
        help="command that starts a run, such as 'accelerate launch --num_processes 8'",
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--output_dir", type=user_path, default=Path("out/ablation"), help="for runs and tables")
    return parser


def _data(options: argparse.Namespace) -> Path:
    if options.data_root is not None:
        return options.data_root
    data = options.output_dir / "scenes" / f"{options.draw}{options.draw_seed}"
    write_benchmarks(data, options.draw, _SIZE, options.draw_seed)
    return data
