"""The command line of recipes/llava15.py: check everything cheap first, put the parts together, train, write."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from dcr_hf.cli import loaded_complete, parse, quiet_libraries
from dcr_hf.errors import AlreadyExistsError, UserError, exit_on_user_error
from dcr_hf.export.run_facts import how_it_runs
from dcr_hf.llava.assemble import Parts, assemble, read_parts
from dcr_hf.llava.config import LlavaRecipe, LlavaTraining
from dcr_hf.llava.examples import Examples, check_images
from dcr_hf.llava.folder import LlavaFolder, read_llava
from dcr_hf.llava.records import read_records
from dcr_hf.llava.stages import (
    ALIGN,
    INSTRUCT,
    TRAINED,
    describe,
    finish_from_last,
    is_finished,
    resume_facts,
    stage_args,
    train_stage,
    training_processor,
    write_result,
)
from dcr_hf.training.checkpoints import check_resume_of, remove_incomplete
from dcr_hf.training.fit import barrier
from dcr_hf.training.lock import locked
from dcr_hf.training.requirements import check_trainer_options


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

    def trained(self, *stages: str) -> list[Path]:
        """Of these stages, the results of those that are finished."""
        return [self.output / stage / TRAINED for stage in stages if is_finished(self.output / stage)]


def run(recipe: LlavaRecipe, args: LlavaTraining) -> None:
    """Check, then train what `recipe.stage` names. The same call again resumes."""
    folders = _Folders.of(recipe, args)
    beginning, records = check(recipe, args, folders)
    if recipe.dry_run:
        _print_plan(recipe, args, beginning, records)
        return
    with locked(folders.output, first=args.process_index == 0):
        _train(recipe, args, folders, beginning, records)


def _train(
    recipe: LlavaRecipe,
    args: LlavaTraining,
    folders: _Folders,
    beginning: LlavaFolder | Parts,
    records: dict[str, datasets.Dataset],
) -> None:
    start = _prepare_output(recipe, args, folders, beginning)
    for stage in recipe.stages:
        if not is_finished(folders.output / stage):
            options = stage_args(recipe, args, stage)
            examples = _examples(recipe, options, stage, records[stage], start)
            before = next(iter(folders.trained(ALIGN)), None) if stage == INSTRUCT else None
            train_stage(start, recipe, options, stage, examples, before)
    if args.process_index == 0:
        trained = folders.trained(*dict.fromkeys((ALIGN, *recipe.stages)))
        with loaded_complete(args):
            write_result(start, trained, args.lora_scale, folders.result)
        print(f"LLaVA: {folders.result}")


def check(
    recipe: LlavaRecipe, args: LlavaTraining, folders: _Folders
) -> tuple[LlavaFolder | Parts, dict[str, datasets.Dataset]]:
    """Everything that can be wrong and is cheap to see, before anything is loaded. Returns what training begins from,
    and each stage's records."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UserError(
            "LLaVA's stages run in one process, under DDP and under DeepSpeed, not under FSDP: give another "
            "--config_file, such as accelerate_configs/deepspeed_zero3.yaml."
        )
    check_trainer_options(args)
    beginning = _beginning(recipe, folders)
    tokens = _llava(beginning).tower.image_tokens
    if args.model_max_length <= tokens:
        raise UserError(f"--model_max_length is {args.model_max_length}, and an image alone has {tokens} tokens.")
    if folders.result.exists() and not (recipe.overwrite_output_dir or recipe.dry_run):
        raise AlreadyExistsError(
            f"{folders.result} holds a finished run. Choose another --output_dir, or give --overwrite_output_dir to "
            "delete it and start over."
        )
    if not recipe.overwrite_output_dir:
        _check_resume(recipe, args, folders)
    return beginning, {stage: _records(recipe, stage) for stage in recipe.stages}


def _beginning(recipe: LlavaRecipe, folders: _Folders) -> LlavaFolder | Parts:
    parts = (recipe.encoder, recipe.language_model)
    if recipe.llava and any(parts):
        raise UserError(
            "--llava is a complete LLaVA; --encoder and --language_model are the parts of another. Give either. To "
            "put an encoder into a LLaVA: python -m dcr_hf.llava swap."
        )
    if recipe.llava:
        return read_llava(recipe.llava)
    if recipe.encoder is None or recipe.language_model is None:
        raise UserError("give --llava, or both --encoder and --language_model.")
    if recipe.stage == INSTRUCT and not folders.trained(ALIGN):
        raise UserError(
            f"--stage instruct needs a projector that is aligned, and {folders.output} holds none. Run --stage align "
            "into the same --output_dir first, or --stage all, or begin from a --llava."
        )
    return read_parts(recipe.encoder, recipe.language_model)


def _llava(beginning: LlavaFolder | Parts) -> LlavaFolder:
    """As it is or will be."""
    return beginning.llava if isinstance(beginning, Parts) else beginning


def _records(recipe: LlavaRecipe, stage: str) -> datasets.Dataset:
    file, images = _data(recipe, stage)
    if file is None:
        raise UserError(f"--stage {recipe.stage} needs --{stage}_data, LLaVA's JSON of conversations.")
    records = read_records(file, captions=stage == ALIGN)
    check_images(records, images, f"{stage}_images")
    return records


def _data(recipe: LlavaRecipe, stage: str) -> tuple[str | None, str | None]:
    if stage == ALIGN:
        return recipe.align_data, recipe.align_images
    return recipe.instruct_data, recipe.instruct_images


def _check_resume(recipe: LlavaRecipe, args: LlavaTraining, folders: _Folders) -> None:
    """Refuse to resume what was begun with other options."""
    if folders.run_file.is_file():
        before = json.loads(folders.run_file.read_text())["options"]
        for name in ("llava", "encoder", "language_model"):
            if before[name] != getattr(recipe, name):
                raise UserError(
                    f"{folders.output} holds a run that began with --{name} {before[name]}; this one has "
                    f"{getattr(recipe, name)}. Choose another --output_dir, or give --overwrite_output_dir."
                )
    for stage in recipe.stages:
        if not is_finished(folders.output / stage):
            facts = resume_facts(recipe, stage_args(recipe, args, stage), stage)
            check_resume_of(stage, folders.output / stage, facts, recipe.resume_anyway)


def _prepare_output(
    recipe: LlavaRecipe, args: LlavaTraining, folders: _Folders, beginning: LlavaFolder | Parts
) -> LlavaFolder:
    """Clear away what is torn or was not wanted, say how the run is made; returns what it begins from, on disk."""
    if args.process_index == 0:
        if recipe.overwrite_output_dir:
            for folder in (*(folders.output / stage for stage in recipe.stages), folders.result, folders.start):
                shutil.rmtree(folder, ignore_errors=True)
        for stage in recipe.stages:
            remove_incomplete(folders.output / stage)
            finish_from_last(stage_args(recipe, args, stage))
        folders.output.mkdir(parents=True, exist_ok=True)
        facts = how_it_runs(asdict(recipe) | args.to_dict(), args.world_size)
        folders.run_file.write_text(json.dumps(facts, indent=2, default=str) + "\n")
        if isinstance(beginning, Parts) and not folders.start.exists():
            with loaded_complete(args):
                assemble(beginning, folders.start)
    barrier(args)
    return read_llava(str(folders.start)) if isinstance(beginning, Parts) else beginning


def _examples(
    recipe: LlavaRecipe, args: LlavaTraining, stage: str, records: datasets.Dataset, start: LlavaFolder
) -> Examples:
    return Examples(
        records,
        _data(recipe, stage)[1],
        training_processor(start),
        start.tower.image_tokens,
        args.model_max_length,
        args.max_bad_fraction,
        f"--{stage}_images",
    )


def _print_plan(
    recipe: LlavaRecipe,
    args: LlavaTraining,
    beginning: LlavaFolder | Parts,
    records: dict[str, datasets.Dataset],
) -> None:
    """What each stage would train, and on what."""
    start = _llava(beginning)
    options = {stage: stage_args(recipe, args, stage) for stage in recipe.stages}
    examples = {stage: _examples(recipe, options[stage], stage, records[stage], start) for stage in recipe.stages}
    if args.process_index == 0:
        with loaded_complete(args):
            plans = [describe(start, recipe, options[stage], stage, examples[stage]) for stage in recipe.stages]
        print("\n\n".join(plans))
