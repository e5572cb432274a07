"""What a run prints in the terminal: one line a phase, one short line a logging step; the log files have the rest."""

import sys
import time

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainingArguments

# Of the log's many entries: the name, how it is printed, the format.
_SHOWN = (
    ("loss", "loss", ".4f"),
    ("cosine/view", "view", ".3f"),
    ("cosine/target", "target", ".3f"),
    ("cosine/negative", "negatives", ".3f"),
    ("embedding_cosine/view", "view", ".3f"),
    ("embedding_cosine/other", "others", ".3f"),
    ("noise_mse/own", "noise MSE", ".3f"),
    ("condition_norm", "condition norm", ".2f"),
    ("moved", "moved", ".4f"),
    ("images_per_second", "images/s", ".1f"),
)


def say(args: TrainingArguments, text: str) -> None:
    """Print one line on the first rank, at once."""
    if args.process_index == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def log_line(logs: dict[str, float], step: int, last_step: int, seconds_left: float | None) -> str:
    """'step 20/150  loss 2.3104  view 0.981  ...  4 min left', from the entries of a training step's log.

    Other lines of the log, such as an evaluation's, are printed as they are.
    """
    if "loss" in logs:
        shown = [f"{title} {logs[name]:{form}}" for name, title, form in _SHOWN if name in logs]
        if skipped := logs.get("skipped_images"):
            shown.append(f"skipped {skipped:.0f}")
    else:
        shown = [f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float)]
    left = [] if seconds_left is None else [f"{duration(seconds_left)} left"]
    return "  ".join([f"step {step:,}/{last_step:,}", *shown, *left])


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min', '2 d 5 h'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class PlainLog(TrainerCallback):
    """Prints one short line a logging step, on the first rank."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if any(name.startswith("gradient_conflict/") for name in logs):  # a line a layer; the plot shows them
            return
        self._write(log_line(logs, state.global_step, state.max_steps, self._seconds_left(state)))

    def _seconds_left(self, state) -> float | None:
        start, first = self._start
        done = state.global_step - first
        return (time.perf_counter() - start) / done * (state.max_steps - state.global_step) if done else None

    def _write(self, line: str) -> None:
        print(line, flush=True)


class ProgressBar(PlainLog, ProgressCallback):
    """transformers' progress bar, with the short line above it."""

    def __init__(self):
        ProgressCallback.__init__(self)

    def on_train_begin(self, args, state, control, **kwargs):
        PlainLog.on_train_begin(self, args, state, control, **kwargs)
        if not sys.stderr.isatty():  # a log file: lines alone
            return
        ProgressCallback.on_train_begin(self, args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            ProgressCallback.on_step_end(self, args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            ProgressCallback.on_train_end(self, args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """The evaluation has a bar of its own."""

    def _write(self, line: str) -> None:
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)
