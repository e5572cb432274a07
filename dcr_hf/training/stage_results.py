"""The result of a stage: put in place at its end, or made from the last checkpoint of a run that was killed there."""

import json
import shutil
from pathlib import Path

from dcr_hf.models.projector import PROJECTOR_FOLDER
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS
from dcr_hf.training.gradient_conflict_plot import write_conflict

_LAST = (PROJECTOR_FOLDER, ADAPTER_WEIGHTS, VISION_WEIGHTS)


def finish_from(checkpoint: Path, folder: Path) -> None:
    """The stage's result from its last checkpoint, or from its best, where that was asked for and is the result."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    options = json.loads((checkpoint / "training_args.json").read_text(encoding="utf-8"))
    best = state["best_model_checkpoint"]
    result = folder / Path(best).name if options["load_best_model_at_end"] and best else checkpoint
    partial = folder / "unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    trained = [path for pattern in ("adapter_*", VISION_WEIGHTS, PROJECTOR_FOLDER) for path in result.glob(pattern)]
    for path in [*trained, checkpoint / "trainer_state.json"]:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, partial / path.name)
    write_conflict(partial, state["log_history"])
    put_in_place(partial, folder)


def put_in_place(partial: Path, folder: Path) -> None:
    """Move a finished stage's files up beside its checkpoints, those that `is_finished` looks for last."""

    def order(path: Path) -> int:
        return _LAST.index(path.name) if path.name in _LAST else -1

    for path in sorted(partial.iterdir(), key=order):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    partial.rmdir()
