"""A run: check -> plan -> train -> export."""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from dcr_hf.cli import loaded_complete, parse, quiet_libraries
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.data.dealing import Source
from dcr_hf.denoiser import FrozenDenoiser, check_denoiser
from dcr_hf.errors import AlreadyExistsError, UserError, exit_on_user_error
from dcr_hf.export import (
    RunFacts,
    Upload,
    check_upload,
    export_encoder,
    export_folders,
    push_to_hub,
    upload_command,
)
from dcr_hf.hub import from_one_process
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import check_encoder, patch_width, read_encoder_config
from dcr_hf.training.checkpoints import check_resume_of, remove_incomplete
from dcr_hf.training.describe import describe
from dcr_hf.training.fit import barrier, train_stage
from dcr_hf.training.lock import locked
from dcr_hf.training.option_checks import check_objectives
from dcr_hf.training.plan import StagePlan, options_of_run, plan_stages
from dcr_hf.training.progress import say
from dcr_hf.training.requirements import check_trainer_options
from dcr_hf.training.revisions import Inputs, resolve_inputs
from dcr_hf.training.validation import TrainingEvaluation


def main(recipe: Recipe, **training: Any) -> None:
    """Run a recipe with the options of the command line.

    Args:
        recipe: what the recipe file states.
        training: what the recipe file changes of DCRConfig's defaults.
    """
    with exit_on_user_error():
        quiet_libraries()
        run(*parse(recipe, training, sys.argv[1:]))


def run(recipe: Recipe, args: DCRConfig) -> None:
    """Check, then train and export what `recipe.stage` names. The same call again resumes."""
    plans = plan_stages(recipe, args)
    inputs, evaluation = check(recipe, args, plans)
    plans = [plan.with_facts(inputs.facts) for plan in plans]
    if recipe.dry_run:
        _print_plans(recipe, args, plans, inputs.source)
        return
    with locked(args.folder, first=args.process_index == 0):
        facts = _prepare_output(recipe, args, plans, inputs)
        _train(recipe, args, plans, inputs.source, evaluation)
        if plans[-1].trains_encoder and args.process_index == 0:
            with loaded_complete(args):
                _export(recipe, args, facts, plans[-1].folder)
            if args.push_to_hub:
                _upload(recipe, args)


def check(recipe: Recipe, args: DCRConfig, plans: list[StagePlan]) -> tuple[Inputs, TrainingEvaluation | None]:
    """What goes into the run and the benchmarks to run during training, after everything that is cheap to check.

    Raises:
        UserError: whatever is wrong with the options, the models, the data or the output, before anything is loaded.
    """
    check_trainer_options(args)
    check_objectives(recipe, args, plans)
    inputs = resolve_inputs(recipe, args.folder)
    widths = check_encoder(recipe.encoder), check_denoiser(recipe.denoiser)
    _check_projector(recipe, plans, *widths)
    _check_amount(recipe, args, inputs.source)
    if not (recipe.overwrite_output_dir or recipe.dry_run):
        _check_not_finished(recipe, args, plans)
    if not recipe.overwrite_output_dir:
        for plan in plans:
            if not plan.finished:
                check_resume_of(plan.name, plan.folder, plan.facts | inputs.facts, recipe.resume_anyway)
    if args.push_to_hub and plans[-1].trains_encoder:
        folders, create = export_folders(recipe.encoder, args.folder), not recipe.dry_run
        from_one_process(lambda: check_upload(_upload_of(args), folders, create))
    return inputs, _evaluation(recipe, args)


def _check_projector(recipe: Recipe, plans: list[StagePlan], embedding_width: int, condition_width: int) -> None:
    if recipe.projector and any(plan.trains_projector for plan in plans):
        raise UserError(f"--projector is for --stage 2; --stage {recipe.stage} trains a projector of its own.")
    made_here = {plan.folder for plan in plans if not plan.finished or recipe.overwrite_output_dir}
    for plan in plans:
        if plan.projector not in made_here:
            width = patch_width(read_encoder_config(recipe.encoder)[0])
            plan.check_projector(embedding_width, condition_width, width)


def _check_amount(recipe: Recipe, args: DCRConfig, source: Source) -> None:
    wanted = args.per_device_train_batch_size * args.world_size
    if source.images is not None and source.images < wanted:
        raise UserError(
            f"--train_data {recipe.train_data!r} has about {source.images} images, fewer than one batch of "
            f"{args.per_device_train_batch_size} for each of {args.world_size} processes. Give more data, or lower "
            "--per_device_train_batch_size or the number of processes."
        )


def _check_not_finished(recipe: Recipe, args: DCRConfig, plans: list[StagePlan]) -> None:
    last = plans[-1]
    if last.trains_encoder and args.push_to_hub and last.finished:
        return
    if last.trains_encoder:
        existing = [folder for folder in export_folders(recipe.encoder, args.folder) if folder.exists()]
    else:
        existing = [last.folder] if last.finished else []
    if existing:
        upload = f" To upload it: {upload_command(args.folder, _upload_of(args))}" if last.trains_encoder else ""
        raise AlreadyExistsError(
            f"{existing[0]} holds a finished run. Choose another --output_dir, or give --overwrite_output_dir to "
            f"delete it and start over.{upload}"
        )


def _evaluation(recipe: Recipe, args: DCRConfig) -> TrainingEvaluation | None:
    if not args.eval_benchmarks:
        for option, given in (("eval_strategy", args.eval_strategy != "no"), ("eval_on_start", args.eval_on_start)):
            if given:
                raise UserError(f"--{option} needs something to evaluate: give --eval_benchmarks.")
        return None
    root = Path(args.eval_data_root) if args.eval_data_root else None
    return TrainingEvaluation(recipe.encoder, args.eval_benchmarks, root, args.per_device_eval_batch_size)


def _load_denoiser(recipe: Recipe, args: DCRConfig) -> FrozenDenoiser:
    with loaded_complete(args):
        return FrozenDenoiser.from_pretrained(
            recipe.denoiser,
            args.denoiser_torch_dtype,
            args.noise_target,
            args.pairs_at_once,
            args.mask_prompt_padding,
        )


def _prepare_output(recipe: Recipe, args: DCRConfig, plans: list[StagePlan], inputs: Inputs) -> RunFacts:
    """run.json, in a folder without incomplete checkpoints and without what is to be overwritten."""
    facts = RunFacts.of_this_run(
        recipe.encoder,
        recipe.denoiser,
        recipe.train_data,
        options_of_run(recipe, args),
        args.world_size,
        [plan.summary() for plan in plans],
        inputs.revisions,
    )
    if args.process_index == 0:
        old = [plan.folder for plan in plans] + list(export_folders(recipe.encoder, args.folder))
        for folder in old if recipe.overwrite_output_dir else []:
            shutil.rmtree(folder, ignore_errors=True)
        for plan in plans:
            remove_incomplete(plan.folder)
        facts.write(args.folder)
    barrier(args)
    return facts


def _train(
    recipe: Recipe,
    args: DCRConfig,
    plans: list[StagePlan],
    source: Source,
    evaluation: TrainingEvaluation | None,
) -> None:
    unfinished = [plan for plan in plans if not plan.finished]
    barrier(args)  # no rank finishes a stage before all have looked
    if not unfinished:
        return
    say(args, f"loading the denoiser {recipe.denoiser}")
    denoiser = _load_denoiser(recipe, args)
    for plan in unfinished:
        number = f"{plans.index(plan) + 1} of {len(plans)}"
        resumed = f", from {plan.checkpoint.name}" if plan.checkpoint else ""
        say(args, f"stage {number} ({plan.name}): training {plan.trains}, {plan.args.max_steps:,} steps{resumed}")
        # Loaded again for each stage: a strategy such as ZeRO partitions a model and does not restore it.
        with loaded_complete(args):
            model = plan.build_model(ImageEncoder.from_pretrained(recipe.encoder), denoiser.condition_width)
        train_stage(plan, model, denoiser, source, evaluation)


def _print_plans(recipe: Recipe, args: DCRConfig, plans: list[StagePlan], source: Source) -> None:
    """What each stage would train and cost. Reads no weights."""
    if args.process_index:
        return
    condition_width = check_denoiser(recipe.denoiser)
    texts = []
    for plan in plans:
        with loaded_complete(args), torch.device("meta"):
            encoder = ImageEncoder.without_weights(recipe.encoder)
            model = plan.build_model(encoder, condition_width, untrained=True)
        texts.append(describe(plan, model, source.images))
    print("\n\n".join(texts))


def _export(recipe: Recipe, args: DCRConfig, facts: RunFacts, trained: Path) -> None:
    if all(folder.exists() for folder in export_folders(recipe.encoder, args.folder)):  # only the upload was missing
        return
    say(args, "exporting the enhanced encoder")
    folders = export_encoder(recipe.encoder, trained, args.folder, facts.with_log_of(trained))
    print("\n".join(f"enhanced encoder: {folder}" for folder in folders))


def _upload_of(args: DCRConfig) -> Upload:
    return Upload(args.hub_model_id, args.hub_private_repo, args.hub_token)


def _upload(recipe: Recipe, args: DCRConfig) -> None:
    upload = _upload_of(args)
    say(args, "uploading")
    for repository in push_to_hub(
        export_folders(recipe.encoder, args.folder), upload, upload_command(args.folder, upload)
    ):
        print(f"uploaded: {repository}")
