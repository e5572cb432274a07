"""Checkpoints that are whole or are not there; and what a run must agree on with the checkpoint it goes on from."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcr_hf.config import DCRConfig, Recipe

# Written last of all. Holds what a run that goes on from here must agree on.
MARK = "complete.json"

# What of transformers' arguments every training must agree on.
OPTIMIZATION_FACTS = (
    "bf16",
    "fp16",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
)
_RECIPE_FACTS = ("encoder", "denoiser", "train_data", "projector")
_TRAINING_FACTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "dataloader_num_workers",
    "seed",
    "data_seed",
    "objective",
    "temperature",
    "lambda_rec",
    "lambda_con",
    "contrast_space",
    "condition",
    "patch_keep_ratio",
    "keep_weight",
    "num_negatives",
    "detach_negatives",
    "gather_conditions",
    "pair_chunk_size",
    "noise_target",
    "view_flips",
    "view_space",
    "denoiser_dtype",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "shuffle_buffer",
    "projector_learning_rate",
    *OPTIMIZATION_FACTS,
)


class ResumeError(ValueError):
    """A checkpoint was made with other options than this run's."""


def resume_facts(recipe: Recipe, args: DCRConfig) -> dict[str, Any]:
    """What changes the objective, the data or the arithmetic of a stage; `args` are the stage's own."""
    facts = {name: getattr(recipe, name) for name in _RECIPE_FACTS}
    facts |= {name: getattr(args, name) for name in _TRAINING_FACTS}
    return json.loads(json.dumps(facts, default=str))  # as it comes back from a file


def check_resume(checkpoint: Path, facts: dict[str, Any], anyway: bool) -> list[str]:
    """The differences between a checkpoint's facts and this run's, if `anyway` allows any.

    Raises:
        ResumeError: there are some, and it does not.
    """
    before = json.loads((checkpoint / MARK).read_text())
    changed = [name for name, now in facts.items() if before.get(name) != now]
    differences = [f"{name}: {before.get(name)!r} -> {facts[name]!r}" for name in changed]
    if differences and not anyway:
        raise ResumeError(
            f"{checkpoint} was made with other options: {'; '.join(differences)}. Give the same options, another "
            "--output_dir, or --resume_anyway to go on with these: the result is then no longer that of either run."
        )
    return differences


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those that were written to their end, oldest step first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / MARK).is_file()), key=step_of)


def remove_torn(folder: Path) -> None:
    """Delete checkpoints whose writing was cut off, and only those."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK).is_file():
            shutil.rmtree(path)


def mark_whole(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Declare a checkpoint whole; it appears with its mark or without, never with half of it."""
    partial = checkpoint / f".{MARK}"
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    partial.replace(checkpoint / MARK)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest whole checkpoints until `limit` are left; never the newest, never the best."""
    checkpoints = whole_checkpoints(folder)
    expendable = [path for path in checkpoints[:-1] if best is None or path.name != Path(best).name]
    surplus = len(checkpoints) - max(limit, 1) if limit else 0
    for path in expendable[: max(surplus, 0)]:
        # Its mark first: a deletion that is cut off must not leave half a checkpoint that looks whole.
        (path / MARK).unlink()
        shutil.rmtree(path)


@contextlib.contextmanager
def writing(folder: Path, needed: int, remedy: str = "Make room, or lower --save_total_limit") -> Iterator[None]:
    """Around the writing of `folder`, about `needed` bytes: what fails half-way is removed and explained.

    Args:
        remedy: what helps where space is short.

    Raises:
        OSError: names the folder and, where space is short, the bytes that are missing.
    """
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    _refuse_full_disk(folder, place, needed, remedy)
    try:
        yield
    except Exception as error:  # torch and safetensors each have their own for a failing write
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        _refuse_full_disk(folder, place, needed, remedy, error)
        if isinstance(error, OSError) or "writ" in str(error):
            raise OSError(f"could not write {folder}: {error}. What was saved before is still there.") from error
        raise


def _refuse_full_disk(folder: Path, place: Path, needed: int, remedy: str, cause: Exception | None = None) -> None:
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"could not write {folder}: it needs about {needed:,} bytes and {free:,} are free, {needed - free:,} are "
            f"missing. What was saved before is still there. {remedy}, and run the same command again."
        ) from cause
    if not os.access(place, os.W_OK):
        raise OSError(f"could not write {folder}: no permission in {place}.") from cause
