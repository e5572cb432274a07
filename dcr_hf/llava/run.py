"""The command line of recipes/llava15.py: check everything cheap first, put the parts together, train, write."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from dcr_hf.cli import loaded_complete, parse, quiet_libraries
from dcr_hf.errors import AlreadyExistsError, UserError, exit_on_user_error
from dcr_hf.export.run_facts import how_it_runs
from dcr_hf.hub import fingerprint_of_files, hub_id
from dcr_hf.llava.assemble import Parts, assemble, read_parts
from dcr_hf.llava.config import LlavaRecipe, LlavaTraining
from dcr_hf.llava.examples import Examples, check_images
from dcr_hf.llava.folder import LlavaFolder, read_llava
from dcr_hf.llava.plan import ALIGN, LlavaStagePlan, plan_stages, trained_results
from dcr_hf.llava.records import read_records
from dcr_hf.llava.stages import describe, finish_from_last, train_stage, training_processor, write_result
from dcr_hf.training.checkpoints import check_resume_of, remove_incomplete
from dcr_hf.training.fit import barrier
from dcr_hf.training.lock import locked
from dcr_hf.training.requirements import check_trainer_options
from dcr_hf.training.revisions import recorded_revisions, resolve_models, revision_facts

_MODELS = ("llava", "encoder", "language_model")


def main(recipe: LlavaRecipe, **training: Any) -> None:
    """Run with the options of the command line; see `dcr_hf.run.main`."""
    with exit_on_user_error():
        quiet_libraries()
        run(*parse(recipe, training, sys.argv[1:], LlavaTraining))


@dataclass(frozen=True)
class _Folders:
    """The folders and files of a run."""

    output: Path
    result: Path
    """The LLaVA that comes of it."""

    @classmethod
    def of(cls, recipe: LlavaRecipe, args: LlavaTraining) -> "_Folders":
        output = args.folder
        return cls(output, output / ("llava-aligned" if recipe.stage == ALIGN else "llava"))

    @property
    def start(self) -> Path:
        """The LLaVA that is assembled where parts were given."""
        return self.output / "start"

    @property
    def run_file(self) -> Path:
        """How the run was made when it was called last."""
        return self.output / "run.json"


def run(recipe: LlavaRecipe, args: LlavaTraining) -> None:
    """Check, then train what `recipe.stage` names. The same call again resumes."""
    folders, plans = _Folders.of(recipe, args), plan_stages(recipe, args)
    beginning, records, revisions = check(recipe, args, folders, plans)
    plans = [_with_revisions(plan, revisions) for plan in plans]
    if recipe.dry_run:
        _print_plans(args, plans, _llava(beginning), records)
        return
    with locked(folders.output, first=args.process_index == 0):
        _train(recipe, args, folders, plans, beginning, records, revisions)


def _train(
    recipe: LlavaRecipe,
    args: LlavaTraining,
    folders: _Folders,
    plans: list[LlavaStagePlan],
    beginning: LlavaFolder | Parts,
    records: dict[str, datasets.Dataset],
    revisions: dict[str, str],
) -> None:
    start = _prepare_output(recipe, args, folders, plans, beginning, revisions)
    for plan in plans:
        if not plan.finished:
            train_stage(plan, start, _examples(plan, records[plan.name], start))
    if args.process_index == 0:
        with loaded_complete(args):
            write_result(start, trained_results(plans), args.lora_scale, folders.result)
        print(f"LLaVA: {folders.result}")


def check(
    recipe: LlavaRecipe, args: LlavaTraining, folders: _Folders, plans: list[LlavaStagePlan]
) -> tuple[LlavaFolder | Parts, dict[str, datasets.Dataset], dict[str, str]]:
    """Everything that can be wrong and is cheap to see, before anything is loaded. Returns what training begins from,
    each stage's records, and the commits and fingerprints of what goes in."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UserError(
            "LLaVA's stages run in one process, under DDP and under DeepSpeed, not under FSDP: give another "
            "--config_file, such as accelerate_configs/deepspeed_zero3.yaml."
        )
    check_trainer_options(args)
    _check_parts(recipe)
    revisions = _revisions(recipe, folders, plans)
    beginning = _beginning(recipe, folders, plans[0])
    tokens = _llava(beginning).tower.image_tokens
    if args.model_max_length <= tokens:
        raise UserError(f"--model_max_length is {args.model_max_length}, and an image alone has {tokens} tokens.")
    if folders.result.exists() and not (recipe.overwrite_output_dir or recipe.dry_run):
        raise AlreadyExistsError(
            f"{folders.result} holds a finished run. Choose another --output_dir, or give --overwrite_output_dir to "
            "delete it and start over."
        )
    if not recipe.overwrite_output_dir:
        _check_resume(recipe, folders, plans, revisions)
    return beginning, {plan.name: _records(recipe, plan) for plan in plans}, revisions


def _revisions(recipe: LlavaRecipe, folders: _Folders, plans: list[LlavaStagePlan]) -> dict[str, str]:
    given = {name: getattr(recipe, name) for name in _MODELS}
    asked = {name: path for name, path in given.items() if path and (hub_id(path) or Path(path).expanduser().is_dir())}
    before = {} if recipe.overwrite_output_dir else recorded_revisions(asked, folders.output)
    revisions = resolve_models(asked, before)
    for plan in plans:
        if plan.data and Path(plan.data).is_file():
            revisions[f"{plan.name}_data"] = fingerprint_of_files([Path(plan.data)], "file")
    return revisions


def _with_revisions(plan: LlavaStagePlan, revisions: dict[str, str]) -> LlavaStagePlan:
    """The plan, with what the models are and the stage's own data."""
    own = {name: value for name, value in revisions.items() if name in (*_MODELS, f"{plan.name}_data")}
    return replace(plan, facts=plan.facts | revision_facts(own))


def _check_parts(recipe: LlavaRecipe) -> None:
    parts = (recipe.encoder, recipe.language_model)
    if recipe.llava and any(parts):
        raise UserError(
            "--llava is a complete LLaVA; --encoder and --language_model are the parts of another. Give either. To "
            "put an encoder into a LLaVA: python -m dcr_hf.llava swap."
        )
    if not recipe.llava and not all(parts):
        raise UserError("give --llava, or both --encoder and --language_model.")


def _beginning(recipe: LlavaRecipe, folders: _Folders, first: LlavaStagePlan) -> LlavaFolder | Parts:
    if recipe.llava:
        return read_llava(recipe.llava)
    assert recipe.encoder is not None and recipe.language_model is not None  # see _check_parts
    if first.earlier and not any(folder.is_dir() for folder in first.earlier):
        raise UserError(
            f"--stage {first.name} needs a projector that is aligned, and {folders.output} holds none. Run --stage "
            "align into the same --output_dir first, or --stage all, or begin from a --llava."
        )
    return read_parts(recipe.encoder, recipe.language_model)


def _llava(beginning: LlavaFolder | Parts) -> LlavaFolder:
    """As it is or will be."""
    return beginning.llava if isinstance(beginning, Parts) else beginning


def _records(recipe: LlavaRecipe, plan: LlavaStagePlan) -> datasets.Dataset:
    if plan.data is None:
        raise UserError(f"--stage {recipe.stage} needs --{plan.name}_data, LLaVA's JSON of conversations.")
    records = read_records(plan.data, plan.captions, plan.args.max_bad_fraction)
    check_images(records, plan.images, f"{plan.name}_images")
    return records


def _check_resume(
    recipe: LlavaRecipe, folders: _Folders, plans: list[LlavaStagePlan], revisions: dict[str, str]
) -> None:
    """Refuse to resume what was begun with other options."""
    if folders.run_file.is_file():
        before = json.loads(folders.run_file.read_text(encoding="utf-8"))["options"]
        for name in _MODELS:
            if before[name] != getattr(recipe, name):
                raise UserError(
                    f"{folders.output} holds a run that began with --{name} {before[name]}; this one has "
                    f"{getattr(recipe, name)}. Choose another --output_dir, or give --overwrite_output_dir."
                )
    for plan in plans:
        if not plan.finished:
            facts = _with_revisions(plan, revisions).facts
            check_resume_of(plan.name, plan.folder, facts, recipe.resume_anyway)


def _prepare_output(
    recipe: LlavaRecipe,
    args: LlavaTraining,
    folders: _Folders,
    plans: list[LlavaStagePlan],
    beginning: LlavaFolder | Parts,
    revisions: dict[str, str],
) -> LlavaFolder:
    """Clear away what is torn or was not wanted, say how the run is made; returns what it begins from, on disk."""
    if args.process_index == 0:
        if recipe.overwrite_output_dir:
            for folder in (*(plan.folder for plan in plans), folders.result, folders.start):
                shutil.rmtree(folder, ignore_errors=True)
        for plan in plans:
            remove_incomplete(plan.folder)
            finish_from_last(plan)
        folders.output.mkdir(parents=True, exist_ok=True)
        facts = how_it_runs(asdict(recipe) | args.to_dict(), args.world_size) | {"revisions": revisions}
        folders.run_file.write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
        if isinstance(beginning, Parts) and not folders.start.exists():
            with loaded_complete(args):
                assemble(beginning, folders.start)
    barrier(args)
    start = read_llava(str(folders.start)) if isinstance(beginning, Parts) else beginning
    start.fetch_weights()
    return start


def _examples(plan: LlavaStagePlan, records: datasets.Dataset, start: LlavaFolder) -> Examples:
    return Examples(
        records,
        plan.images,
        training_processor(start, plan.pads),
        start.tower.image_tokens,
        plan.args.model_max_length,
        plan.args.max_bad_fraction,
        f"--{plan.name}_images",
    )


def _print_plans(
    args: LlavaTraining, plans: list[LlavaStagePlan], start: LlavaFolder, records: dict[str, datasets.Dataset]
) -> None:
    """What each stage would train, and on what."""
    examples = {plan.name: _examples(plan, records[plan.name], start) for plan in plans}
    if args.process_index == 0:
        with loaded_complete(args):
            texts = [describe(plan, start, examples[plan.name]) for plan in plans]
        print("\n\n".join(texts))
