"""Atomic checkpoints, and whether a run may resume from one."""

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dcr_hf.errors import UserError, WriteError

# Written last. Holds the facts that a resume compares.
MARK = "complete.json"


# Options that came later -> what a run did before they did.
_BEFORE = {"lora_bias": "none", "mask_prompt_padding": False, "decay_all": False, "pixel_statistics": "encoder"}
_BEFORE |= {"align_pad": True, "anchor_weight": 0.0, "negative_weighting": "none"}


# Where ranks are CPUs, older transformers (5.17) load an optimizer's state to "cpu:0", which torch does not know.
torch.serialization.register_package(15, lambda _: None, lambda data, place: data if place == "cpu:0" else None)


class ResumeError(UserError):
    """A checkpoint was written with other options than this run's."""


def check_resume(checkpoint: Path, facts: dict[str, Any], anyway: bool) -> list[str]:
    """The differences between a checkpoint's facts and these, if `anyway` allows any.

    A fact that an older version did not record is compared with what that version did, where it is known.

    Raises:
        ResumeError: there are differences, and they are not allowed.
    """
    before = _BEFORE | json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
    changed = [name for name, now in facts.items() if name in before and not _same(before[name], now)]
    differences = [f"{name}: {before[name]!r} -> {facts[name]!r}" for name in changed]
    if differences and not anyway:
        raise ResumeError(
            f"{checkpoint} was written with other options: {'; '.join(differences)}. Give the same options, another "
            "--output_dir, or --resume_anyway to resume with these: the result is then that of neither run."
        )
    return differences


def _same(before: Any, now: Any) -> bool:
    """Older versions recorded some numbers as another type: 10 and 10.0, 16 and '16'."""
    return before == now or str(before) == str(now)


def check_resume_of(stage: str, folder: Path, facts: dict[str, Any], anyway: bool) -> None:
    """`check_resume` of a stage's newest complete checkpoint, if it has one; allowed differences are printed."""
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        for difference in check_resume(checkpoint, facts, anyway):
            print(f"resuming {stage} with another {difference}: no longer exact", file=sys.stderr)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints with their mark, oldest step first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / MARK).is_file()), key=step_of)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step, if there is one."""
    return next(reversed(complete_checkpoints(folder)), None)


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints whose writing was interrupted, and only those."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK).is_file():
            shutil.rmtree(path)


def mark_complete(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Declare a checkpoint complete, atomically."""
    partial = checkpoint / f".{MARK}"
    partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    partial.replace(checkpoint / MARK)


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest complete checkpoints until `limit` are left; never the newest, never the best."""
    checkpoints = complete_checkpoints(folder)
    expendable = [path for path in checkpoints[:-1] if best is None or path.name != Path(best).name]
    surplus = len(checkpoints) - max(limit, 1) if limit else 0
    for path in expendable[: max(surplus, 0)]:
        # Its mark first: an interrupted deletion must not leave a part that looks complete.
        (path / MARK).unlink()
        shutil.rmtree(path)


@contextlib.contextmanager
def writing(folder: Path, needed: int, remedy: str = "Make room, or lower --save_total_limit") -> Iterator[None]:
    """Inside, `folder` is written, about `needed` bytes; if that fails, it is removed and the error says why.

    Args:
        remedy: what to do where space is short.

    Raises:
        WriteError: names the folder and, where space is short, the bytes that are missing.
    """
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    _refuse_full_disk(folder, parent, needed, remedy)
    try:
        yield
    except Exception as error:  # torch and safetensors each have their own for a failing write
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        _refuse_full_disk(folder, parent, needed, remedy, error)
        if isinstance(error, OSError) or "writ" in str(error):
            raise WriteError(f"could not write {folder}: {error}. What was saved before is still there.") from error
        raise


def _refuse_full_disk(folder: Path, parent: Path, needed: int, remedy: str, cause: Exception | None = None) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise WriteError(
            f"could not write {folder}: it needs about {needed:,} bytes and {free:,} are free, {needed - free:,} are "
            f"missing. What was saved before is still there. {remedy}, and run the same command again."
        ) from cause
    if not os.access(parent, os.W_OK):
        raise WriteError(f"could not write {folder}: no permission in {parent}.") from cause
