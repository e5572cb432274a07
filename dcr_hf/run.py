"""The command line of a recipe: parse, check everything cheap first, train the stages, export."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

from dcr_hf.cli import ends_with_a_line, loaded_whole, parse
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.data.sources import Source, find_source
from dcr_hf.denoiser import FrozenDenoiser, check_denoiser
from dcr_hf.export import export_encoder, export_folders, push_to_hub
from dcr_hf.export.run_facts import RunFacts
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import check_encoder, patch_width, read_encoder_config
from dcr_hf.models.projector import Projector, check_projector
from dcr_hf.training.checkpoints import check_resume, remove_torn, resume_facts, whole_checkpoints
from dcr_hf.training.lock import occupying
from dcr_hf.training.option_checks import check_objectives, needs_projector
from dcr_hf.training.stages import (
    END_TO_END,
    STAGE1,
    describe,
    encoder_stage,
    end_to_end_stage,
    is_finished,
    projector_stage,
    stage_args,
    stages_of,
    train_stage,
    wait_for_all,
)
from dcr_hf.training.validation import TrainingEvaluation


def main(recipe: Recipe, **training: Any) -> None:
    """Run a recipe with the options of the command line.

    Args:
        recipe: what the recipe file states.
        training: what the recipe file changes of DCRConfig's defaults.
    """
    with ends_with_a_line():
        run(*parse(recipe, training, sys.argv[1:]))


def run(recipe: Recipe, args: DCRConfig) -> None:
    """Check, then train and export what `recipe.stage` asks for. The same call again goes on where it stopped."""
    source, evaluation = check(recipe, args)
    if recipe.dry_run:
        _print_plan(recipe, args, _denoiser_of(recipe, args), source)
        return
    with occupying(args.output_dir, first=args.process_index == 0):
        _train(recipe, args, source, evaluation)


def _denoiser_of(recipe: Recipe, args: DCRConfig) -> FrozenDenoiser:
    with loaded_whole(args):
        return FrozenDenoiser.from_pretrained(
            recipe.denoiser, args.denoiser_torch_dtype, args.noise_target, args.pair_chunk_size
        )


def _train(recipe: Recipe, args: DCRConfig, source: Source, evaluation: TrainingEvaluation | None) -> None:
    output, denoiser = Path(args.output_dir), _denoiser_of(recipe, args)
    facts = _prepare_output(recipe, args, output)
    stages = stages_of(recipe)
    unfinished = [stage for stage in stages if not is_finished(output / stage)]
    wait_for_all(args)  # none finishes a stage before all have looked
    for stage in unfinished:
        # Read anew for each stage: a strategy such as ZeRO takes a model apart and does not put it together again.
        with loaded_whole(args):
            model = _model_of(stage, recipe, args, denoiser)
        stage_options = stage_args(recipe, args, stage)
        train_stage(model, stage_options, denoiser, source, evaluation, resume_facts(recipe, stage_options))
    stage = stages[-1]
    if stage != STAGE1 and args.process_index == 0:
        with loaded_whole(args):
            _export(recipe, args, facts, output / stage)


def _model_of(stage: str, recipe: Recipe, args: DCRConfig, denoiser: FrozenDenoiser) -> ConditionModel:
    encoder = ImageEncoder.from_pretrained(recipe.encoder)
    if stage == STAGE1:
        return projector_stage(encoder, denoiser.condition_width, args.seed, args.patch_ratio)
    if stage == END_TO_END:
        return end_to_end_stage(encoder, denoiser.condition_width, args)
    if recipe.dry_run or not needs_projector(recipe, args):  # any will do; for a plan its own need not be there yet
        fresh = projector_stage(encoder, denoiser.condition_width, args.seed, args.patch_ratio).projector
        return encoder_stage(encoder, fresh, args)
    folder = recipe.projector or Path(args.output_dir) / STAGE1
    of_patches = None if args.patch_ratio is None else encoder.patch_width
    place = check_projector(folder, encoder.embedding_width, denoiser.condition_width, of_patches)
    return encoder_stage(encoder, Projector.from_pretrained(place), args)


def check(recipe: Recipe, args: DCRConfig) -> tuple[Source, TrainingEvaluation | None]:
    """Everything that can be wrong and is cheap to see, before anything is loaded. Returns the data to train on, and
    the benchmarks to run on the way, if any."""
    output = Path(args.output_dir)
    check_objectives(recipe, args)
    widths = check_encoder(recipe.encoder), check_denoiser(recipe.denoiser)
    if recipe.stage != "2" and recipe.projector:
        raise ValueError(f"--projector is for --stage 2; --stage {recipe.stage} trains a projector of its own.")
    goes_on = recipe.stage == "all" and is_finished(output / STAGE1) and not recipe.overwrite_output_dir
    if goes_on or (recipe.stage == "2" and needs_projector(recipe, args)):
        of_patches = None if args.patch_ratio is None else patch_width(read_encoder_config(recipe.encoder)[0])
        check_projector(recipe.projector or output / STAGE1, *widths, of_patches)
    source = find_source(recipe.train_data)
    _check_amount(recipe, args, source)
    finished = [output / STAGE1] if recipe.stage == "1" else list(export_folders(recipe.encoder, output))
    there = [folder for folder in finished if (is_finished(folder) if recipe.stage == "1" else folder.exists())]
    if there and not (recipe.overwrite_output_dir or recipe.dry_run):
        raise FileExistsError(
            f"{there[0]} holds a finished run. Choose another --output_dir, or give --overwrite_output_dir to delete "
            "it and start over."
        )
    if not recipe.overwrite_output_dir:
        _check_resume(recipe, args)
    return source, _evaluation(recipe, args)


def _check_amount(recipe: Recipe, args: DCRConfig, source: Source) -> None:
    wanted = args.per_device_train_batch_size * args.world_size
    if source.images is not None and source.images < wanted:
        raise ValueError(
            f"--train_data {recipe.train_data!r} has about {source.images} images, fewer than one batch of "
            f"{args.per_device_train_batch_size} for each of {args.world_size} processes. Give more data, or lower "
            "--per_device_train_batch_size or the number of processes."
        )


def _evaluation(recipe: Recipe, args: DCRConfig) -> TrainingEvaluation | None:
    if not args.eval_benchmarks:
        if args.eval_strategy != "no":
            raise ValueError("--eval_strategy needs something to evaluate: give --eval_benchmarks.")
        return None
    root = Path(args.eval_data_root) if args.eval_data_root else None
    return TrainingEvaluation(recipe.encoder, args.eval_benchmarks, root, args.per_device_eval_batch_size)


def _check_resume(recipe: Recipe, args: DCRConfig) -> None:
    """Refuse to go on from a checkpoint that was made with other options."""
    for stage in stages_of(recipe):
        args_of_stage = stage_args(recipe, args, stage)
        folder = Path(args_of_stage.output_dir)
        checkpoints = [] if is_finished(folder) else whole_checkpoints(folder)
        if checkpoints:
            facts = resume_facts(recipe, args_of_stage)
            for difference in check_resume(checkpoints[-1], facts, recipe.resume_anyway):
                print(f"resuming {stage} with another {difference}: no longer exact", file=sys.stderr)


def _prepare_output(recipe: Recipe, args: DCRConfig, output: Path) -> RunFacts:
    options = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)} | args.to_dict()
    facts = RunFacts.of_this_run(recipe.encoder, recipe.denoiser, recipe.train_data, options, args.world_size)
    if args.process_index == 0:
        for stage in stages_of(recipe):
            if recipe.overwrite_output_dir:
                shutil.rmtree(output / stage, ignore_errors=True)
            remove_torn(output / stage)
        if recipe.overwrite_output_dir:
            for folder in export_folders(recipe.encoder, output):
                shutil.rmtree(folder, ignore_errors=True)
        facts.write(output)
    wait_for_all(args)
    return facts


def _print_plan(recipe: Recipe, args: DCRConfig, denoiser: FrozenDenoiser, source: Source) -> None:
    """What each stage would train and cost."""
    if args.process_index:
        return
    plans = []
    for stage in stages_of(recipe):
        model = _model_of(stage, recipe, args, denoiser)
        plans.append(describe(model, stage_args(recipe, args, stage), source.images))
    print("\n\n".join(plans))


def _export(recipe: Recipe, args: DCRConfig, facts: RunFacts, trained: Path) -> None:
    folders = export_encoder(recipe.encoder, trained, args.output_dir, facts.with_log_of(trained))
    print("\n".join(f"enhanced encoder: {folder}" for folder in folders))
    if args.push_to_hub:
        for repository in push_to_hub(folders, args.hub_model_id, args.hub_private_repo, args.hub_token):
            print(f"uploaded: {repository}")
