"""recipes/miniature.py: draw the scenes, train as any recipe does, measure before and after, one page to look at."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcr_hf.cli import parse, quiet_libraries
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.diagnostics.control import write_controls
from dcr_hf.diagnostics.curve import ORIGINAL, Point, draw, measure_curve, write_curve
from dcr_hf.errors import UserError, exit_on_user_error
from dcr_hf.evaluation.report.page import Section, write_report
from dcr_hf.evaluation.report.summary import make_tables
from dcr_hf.evaluation.scoring.results import Results, read_results
from dcr_hf.export import export_folders
from dcr_hf.files import check_writable
from dcr_hf.miniature.drawing import render
from dcr_hf.miniature.layouts import (
    FOR_CHECKPOINTS,
    PAIRS,
    TRAINING_IMAGES,
    TRAINING_SEED,
    write_benchmarks,
    write_training_shards,
)
from dcr_hf.miniature.measure import measure_encoders
from dcr_hf.miniature.pictures import TIMESTEP, clean_images, picture_table, scene_sheet
from dcr_hf.miniature.scenes import sample_scene
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import read_encoder_config
from dcr_hf.models.projector import Projector, find_projector
from dcr_hf.plotting import figure_uri
from dcr_hf.run import run
from dcr_hf.training.fit import barrier
from dcr_hf.training.plan import plan_stages
from dcr_hf.training.progress import say

SHOWN_SCENES, SHOWN_PREDICTIONS = 12, 6
ENHANCED, RANDOM = "enhanced", "random"
CURVE_BENCHMARKS = (f"mmvp_vlm:{PAIRS}", "clustering:scene_shape")


def main(recipe: Recipe, **training: Any) -> None:
    """As `dcr_hf.run.main`, with scenes drawn before and a report made after it.

    Args:
        recipe: its `train_data` is drawn if it is not there, and the test scenes into a folder beside it.
        training: what the recipe file changes of DCRConfig's defaults.
    """
    with exit_on_user_error():
        quiet_libraries()
        drawn = Path(recipe.train_data)
        recipe, args = parse(recipe, training, sys.argv[1:])
        check_writable("--output_dir", args.folder)
        if args.save_strategy == "no":
            raise UserError("--save_strategy no leaves no checkpoints, which the report shows. Leave it out.")
        size = read_encoder_config(recipe.encoder)[0].vision_config.image_size
        first, output, data = args.process_index == 0, Path(args.output_dir), drawn.parent / "test"
        if first and Path(recipe.train_data) == drawn and not drawn.is_dir():
            say(args, f"drawing {TRAINING_IMAGES:,} scenes into {drawn}")
            write_training_shards(drawn, "train", TRAINING_IMAGES, size, TRAINING_SEED)
        barrier(args)
        enhanced, _ = export_folders(recipe.encoder, output)
        report = output / "report" / "report.html"
        # Trained, but stopped before the report: only that is left to do.
        if recipe.overwrite_output_dir or recipe.dry_run or report.is_file() or not enhanced.is_dir():
            run(recipe, args)
            barrier(args)  # for the export, which the first process makes
        if recipe.dry_run or not enhanced.is_dir():
            return
        dev, curve, control = drawn.parent / "dev", output / "curve", output / "control"
        if first:
            write_benchmarks(data, "test", size)
            write_benchmarks(dev, "dev", size, **FOR_CHECKPOINTS)
            shutil.rmtree(control, ignore_errors=True)
            write_controls(output, [0], control)
        barrier(args)
        say(args, "measuring the checkpoints on the dev scenes")
        points = measure_curve(output, CURVE_BENCHMARKS, dev, curve, batch_size=256)
        say(args, "measuring before, after, and an encoder moved as far at random on the test scenes")
        encoders = {ORIGINAL: recipe.encoder, ENHANCED: str(enhanced), RANDOM: str(control / "0")}
        measure_encoders(encoders, data, report.parent)  # each process a share
        if first:
            assert points is not None
            write_curve(points, curve)
            results = read_results(report.parent)
            sections = [_curve_section(points), *_sections(recipe, args, enhanced, size)]
            write_report(results, make_tables(results), report, sections)
            print(summary(results))
            print(f"\n{verdict(results)}\n\nThe report: {report}")


def _curve_section(points: list[Point]) -> Section:
    return Section(
        "On the way",
        [
            "Both abilities at every checkpoint, on the dev scenes, against the distance that the encoder had moved, "
            "the mean of 1 - cosine to the original's embeddings. Shaded: 95 % intervals of the change."
        ],
        [(figure_uri(draw(points)), "Change of P-Ability and D-Ability against the distance moved")],
    )


def _sections(recipe: Recipe, args: DCRConfig, enhanced: Path, size: int) -> list[Section]:
    scenes = [sample_scene("test", index) for index in range(max(SHOWN_SCENES, SHOWN_PREDICTIONS))]
    sheet = scene_sheet(scenes[:SHOWN_SCENES], size)
    shown = Section("The scenes", ["Drawn by dcr_hf/miniature; of the test draw."], [(sheet, "Scenes with captions")])
    plans = plan_stages(recipe, args)
    folder = next((plan.folder for plan in plans if plan.trains_projector), plans[-1].projector)
    projector = None if folder is None else find_projector(folder)
    if projector is None:  # what does not ask the denoiser has no condition to show
        return [shown]
    pixels = np.stack([np.asarray(render(scene, size)) for scene in scenes[:SHOWN_PREDICTIONS]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return [shown, _condition_section(recipe, args, enhanced, images, Projector.from_pretrained(projector))]


def _condition_section(
    recipe: Recipe, args: DCRConfig, enhanced: Path, images: torch.Tensor, projector: Projector
) -> Section:
    denoiser = FrozenDenoiser.from_pretrained(recipe.denoiser, torch.float32)

    @torch.no_grad()
    def conditions_by(encoder: str) -> torch.Tensor:
        model = ConditionModel(ImageEncoder.from_pretrained(encoder), projector, args.patch_ratio).eval()
        encoded = model(images)
        return denoiser.with_tokens(encoded.conditions, encoded.tokens)

    before, after = conditions_by(recipe.encoder), conditions_by(str(enhanced))
    nothing = torch.zeros(len(images), denoiser.condition_width)
    kinds = {"empty prompt": nothing, "own, before": before, "own, after": after}
    predicted = clean_images(denoiser, images, kinds | {"another image's": after.roll(1, dims=0)})
    return Section(
        "What the denoiser sees in the condition",
        [
            f"The clean image that one prediction at timestep {TIMESTEP} of 1,000 stands for: from the same noise,"
            " under the empty prompt, under the condition that stage 1's projector makes of the image's embedding"
            " before and after stage 2, and under another image's condition."
        ],
        [(picture_table({"image": images, **predicted}), "Images and predictions under several conditions")],
    )


def summary(results: Results) -> str:
    """before, after, difference, interval, p, the random control's difference: a line a number."""
    values = {(row["encoder"], row["benchmark"], row["dataset"], row["metric"]): row for row in results.results}
    random = {_key(row): row for row in results.comparisons if row["encoder"] == RANDOM}
    lines = [f"{'':58}{'before':>8}{'after':>8}{'difference':>12}{'95 %':>17}{'p':>8}{'random':>9}"]
    for row in (row for row in results.comparisons if row["encoder"] == ENHANCED):
        key = _key(row)
        before, after = (100 * values[name, *key]["value"] for name in (ORIGINAL, ENHANCED))
        ends = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        p = "< .001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        line = f"{' '.join(key):58}{before:8.1f}{after:8.1f}{100 * row['difference']:+12.1f}{ends:>17}{p:>8}"
        lines.append(f"{line}{100 * random[key]['difference']:+9.1f}")
    return "\n".join(lines)


def _key(row: dict) -> tuple[str, str, str]:
    return row["benchmark"], row["dataset"], row["metric"]


def verdict(results: Results) -> str:
    """One sentence, decided by the numbers: which ability moved beyond noise, in which direction, and what the random
    control did."""
    abilities = (
        ("P-Ability (pairs)", ("mmvp_vlm", "all", "pair_accuracy")),
        ("D-Ability (NMI)", ("clustering", "scene_shape", "nmi")),
    )
    parts = []
    for title, key in abilities:
        row, random = (
            next(row for row in results.comparisons if row["encoder"] == name and _key(row) == key)
            for name in (ENHANCED, RANDOM)
        )
        moved = "did not move beyond noise" if row["noise"] else "rose" if row["difference"] > 0 else "fell"
        p = "p < 0.001" if row["p"] < 0.001 else f"p = {row['p']:.3f}"
        change = f"{title} {moved}: {100 * row['difference']:+.1f} points ({p})"
        parts.append(f"{change}, {100 * random['difference']:+.1f} where the encoder was moved as far at random")
    return "; ".join(parts) + "."
