"""The command line of recipes/pretrain_miniature.py."""

import argparse
import dataclasses
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from diffusers.models import AutoencoderKL

from dcr_hf.cli import quiet_libraries
from dcr_hf.errors import OneLineParser, UserError, exit_on_user_error
from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.files import check_writable, user_path
from dcr_hf.miniature.layouts import PAIRS, write_benchmarks, write_labeled
from dcr_hf.miniature.measure import BENCHMARKS, measure_denoiser, measure_encoders, pair_scores, scores, write_json
from dcr_hf.miniature.models import CLIP_FOLDER, CLIP_FOLDERS, DENOISER_FOLDERS, PREDICTION_TYPES, SIZES, Size
from dcr_hf.miniature.pictures import sample_sheet
from dcr_hf.miniature.pretrain import (
    TrainingDraw,
    pretrain_clip,
    pretrain_denoiser,
    pretrain_taught_clip,
    pretrain_vae,
)
from dcr_hf.miniature.scenes import ATTRIBUTES, Attribute, sample_scene
from dcr_hf.training.lock import locked

SAMPLED = 8
CLIP_NAMES = {"coarse": "clip", "fine": "clip_fine"}
FINE_BENCHMARKS = ("clustering:scene_fine", "zeroshot:scene_fine")
LEARNABLE, FLOOR, CEILING, BETWEEN = 0.80, 0.30, 0.95, 7
VAE_NOISE = 0.2  # with more, what the denoiser learnt from mean latents is of little use on sampled ones


def main(arguments: list[str] | None = None) -> None:
    """Pretrain, or --check what pretraining led to. The same command again resumes."""
    parser = OneLineParser(description="Pretrain the miniature's CLIP and Stable Diffusion on drawn scenes.")
    parser.add_argument("--size", choices=list(SIZES), default="mini", help="size of images and models")
    parser.add_argument(
        "--output_dir",
        type=user_path,
        required=True,
        help="folder for the models, measured.json and the denoisers' samples",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes and of all weights")
    parser.add_argument(
        "--prediction_type",
        choices=PREDICTION_TYPES,
        nargs="+",
        default=list(PREDICTION_TYPES),
        help="what the denoiser predicts; one denoiser is trained for each",
    )
    parser.add_argument(
        "--classes",
        choices=list(CLIP_FOLDERS),
        nargs="+",
        default=["coarse"],
        help="what the CLIP's captions always name: one of 8 shapes or of 120 classes; one CLIP is trained for each",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="pretrain where that is not finished, then check that the testbed is sound: print one line a condition "
        "and exit with 1 if one fails",
    )
    options = parser.parse_args(arguments)
    quiet_libraries()
    with exit_on_user_error():
        if options.check and "coarse" not in options.classes:
            raise UserError("--check looks at the CLIP of the coarse classes: add coarse to --classes.")
        check_writable("--output_dir", options.output_dir)
        with locked(options.output_dir):
            _make(options)


def _make(options: argparse.Namespace) -> None:
    size = SIZES[options.size]
    run = pretrain(size, options.output_dir, options.seed, options.prediction_type, options.classes)
    run |= {"size": options.size, "command": shlex.join(["python", *sys.argv])}
    measured = measure(size, options.output_dir, options.prediction_type, options.classes, run)
    print(f"{options.output_dir}: pairs {measured['pairs']['all']:.3f}; measured.json has the rest")
    if options.check and not check(size, options.output_dir, options.seed, measured):
        raise SystemExit(1)


def pretrain(size: Size, output: Path, seed: int, prediction_types: list[str], classes: list[str]) -> dict:
    """Make what is missing below `output`; the work in progress is in output/work."""
    work = output / "work"
    wanted = [
        *(output / CLIP_FOLDERS[kind] for kind in classes),
        *(output / DENOISER_FOLDERS[kind] for kind in prediction_types),
    ]
    start = time.perf_counter()
    if not all(folder.is_dir() for folder in wanted):
        draw = TrainingDraw.of(size, seed)
        for kind in classes:
            pretrain_clip(draw, size, output, work, seed, kind)
        vae = pretrain_vae(draw, size, work, seed)
        for kind in prediction_types:
            # Loaded again for each: a pipeline's parts move with it.
            pretrain_denoiser(draw, AutoencoderKL.from_pretrained(vae), size, output, work, seed, kind)
    return {"seed": seed, "seconds_of_this_call": round(time.perf_counter() - start, 1)}


def measure(size: Size, output: Path, prediction_types: list[str], classes: list[str], run: dict) -> dict:
    """measured.json, on the dev draw, and what each denoiser draws, sd-miniature.png."""
    data = output / "work" / "dev"
    write_benchmarks(data, "dev", size.image_size)
    encoders = {CLIP_NAMES[kind]: str(output / CLIP_FOLDERS[kind]) for kind in classes}
    benchmarks = [*BENCHMARKS, *(FINE_BENCHMARKS if "fine" in classes else ())]
    results = measure_encoders(encoders, data, output / "work" / "report", benchmarks)
    content = {
        "run": run,
        "size": dataclasses.asdict(size),
        "versions": {name: version(name) for name in ("torch", "transformers", "diffusers")},
        "draw": "dev",
        "pairs": pair_scores(results, next(iter(encoders))),
        **scores(results),
        "denoisers": {kind: measure_denoiser(output / DENOISER_FOLDERS[kind]) for kind in prediction_types},
    }
    write_json(output / "measured.json", content)
    scenes = [sample_scene("dev", index) for index in range(SAMPLED)]
    for kind in prediction_types:
        folder = output / DENOISER_FOLDERS[kind]
        sample_sheet(folder, scenes, size.image_size, output / f"{folder.name}.png")
    return content


def check(size: Size, output: Path, seed: int, measured: dict) -> bool:
    """Print whether the testbed can measure what it is for; every line is a condition."""
    work, base = output / "work", measured["pairs"]
    data = work / "dev"
    lines = []
    for name, attribute in zip(CATEGORIES, ATTRIBUTES, strict=True):
        share, how = base[name], "of the base CLIP"
        if share <= LEARNABLE:
            share, how = (
                _share_when_taught(attribute, name, size, output, seed),
                "of a CLIP that was trained on with it",
            )
        lines.append((f"{name}: {share:.1%} of the pairs {how} (> {LEARNABLE:.0%})", share > LEARNABLE))
    if not (data / "swapped_shape").is_dir():
        write_labeled(data, "swapped", "dev", {"test": 3000}, size.image_size, swap_backgrounds=True)
    swapped = measure_encoders(
        {"clip": str(output / CLIP_FOLDER)},
        data,
        work / "swapped_report",
        ["clustering:scene_shape", "clustering:swapped_shape"],
    )
    own, other = (scores(swapped)["clip"][f"clustering/{name}_shape/nmi"] for name in ("scene", "swapped"))
    between = [name for name in CATEGORIES if FLOOR < base[name] < CEILING]
    shares = ", ".join(f"{base[name]:.0%}" for name in CATEGORIES)
    limits = f"between {FLOOR:.0%} and {CEILING:.0%} on {len(between)} of 9 (>= {BETWEEN})"
    lines.append((f"the base CLIP is {limits}: {shares}", len(between) >= BETWEEN))
    same = own[1] < other[0] < own[2] or other[1] < own[0] < other[2]
    lines.append((f"NMI of shape {own[0]:.3f}, before other backgrounds {other[0]:.3f}", same))
    for kind, errors in measured["denoisers"].items():
        noise = f"{kind}: {errors['vae_noise']:.1%} of a latent channel's variance is the VAE's own noise"
        lines.append((f"{noise} (< {VAE_NOISE:.0%})", errors["vae_noise"] < VAE_NOISE))
        full, empty, wrong = (errors[f"noise_mse/{name}"] for name in ("full", "empty", "wrong"))
        lines.append(
            (f"{kind}: noise MSE {full:.3f} full < {empty:.3f} empty < {wrong:.3f} wrong", full < empty < wrong)
        )
    for line, holds in lines:
        print(f"{'ok  ' if holds else 'FAIL'} {line}")
    write_json(output / "check.json", {line: holds for line, holds in lines})
    return all(holds for _, holds in lines)


def _share_when_taught(attribute: Attribute, category: str, size: Size, output: Path, seed: int) -> float:
    """How many of its pairs the CLIP gets right after it was trained on with scenes that differ in it."""
    taught = output / "work" / "told" / attribute.name
    taught.mkdir(parents=True, exist_ok=True)
    clip = pretrain_taught_clip(output / CLIP_FOLDER, attribute, size, taught, taught / "work", seed)
    results = measure_encoders(
        {"taught": str(clip)}, output / "work" / "dev", taught / "report", [f"mmvp_vlm:{PAIRS}"]
    )
    return pair_scores(results, "taught")[category]
