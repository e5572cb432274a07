"""A Trainer with atomic checkpoints, that stops on a signal and at a loss that is not finite."""

import json
import os
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed

from dcr_hf.config.base import TrainingOptions
from dcr_hf.errors import Interrupted, UnavailableError, UserError, own_message
from dcr_hf.training.checkpoints import mark_complete, newest_checkpoint, rotate, step_of, writing
from dcr_hf.training.metrics_log import MetricsLog
from dcr_hf.training.progress import PlainLog, ProgressBar
from dcr_hf.training.signals import StopOnSignal


class NonFiniteLossError(UserError, RuntimeError):
    """The loss became infinite or not a number; nothing was saved since."""


class _NoData(Exception):
    """The next batch does not come, on some rank."""


class SeedRanks(TrainerCallback):
    """Trainer seeds every rank alike; noise, timesteps, views and dropout must differ between them. Set when all is
    prepared: what a strategy draws while it wraps the model then changes nothing."""

    def on_train_begin(self, args, state, control, **kwargs):
        set_seed(args.seed + args.process_index)


class ResumableTrainer(Trainer):
    """What every training here has in common. A subclass's `compute_loss` returns a mean over its batch and ends with
    `self.observe(loss, metrics)`.

    Args:
        args, kwargs: passed on to `transformers.Trainer`.
        facts: what a run that resumes from these checkpoints must agree on, see `checkpoints.check_resume`.

    Raises:
        UserError: the launcher's strategy or precision is not the one that runs.
    """

    args: TrainingOptions
    remedy = "Try a lower learning rate."
    """What to try when the loss is not finite."""

    def __init__(self, *args, facts: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not self.is_fsdp_enabled:
            raise UserError(
                f"the launch configuration asks for FSDP, but accelerate runs {self.accelerator.distributed_type} on "
                f"{self.args.device.type}: FSDP needs GPUs. Use accelerate_configs/ddp.yaml or cpu.yaml here."
            )
        if self.accelerator.mixed_precision != self.args.precision:
            raise UserError(
                f"training would run in mixed precision {self.accelerator.mixed_precision!r}, and the options say "
                f"{self.args.precision!r} (--bf16, --fp16). Give the launcher's --mixed_precision the same value."
            )
        # compute_loss returns a mean over the batch: the Trainer then averages over accumulated batches, not sums.
        self.model_accepts_loss_kwargs = False
        self.facts = facts or {}
        self.metrics_log = MetricsLog(self.args.world_size, self.args.device)
        self._observing = False
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.add_callback(SeedRanks())
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(PlainLog() if self.args.disable_tqdm else ProgressBar())

    def counters(self) -> dict[str, int]:
        """Counts of this rank since the start, in addition to images; logged as rates."""
        return {}

    def train(self, *args, **kwargs):
        with self.stop_on_signal.listening():
            return super().train(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One batch, forward and backward: what `compute_loss` observes is logged, once."""
        self.metrics_log.begin(self.counters())
        self._observing, self._batch_log = True, self.batch_log(inputs)
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._observing = False

    def batch_log(self, inputs: dict) -> tuple[int, list]:
        """How many images a batch has, and what was skipped before it: (reason, key)."""
        raise NotImplementedError

    def observe(self, loss: Tensor, metrics: dict[str, Tensor]) -> None:
        """Log a batch's loss and metrics. A no-op outside `training_step`, so that a call of `compute_loss` alone
        changes nothing that is logged or saved."""
        if self._observing:
            self.metrics_log.record(self.state.global_step + 1, loss, metrics, *self._batch_log)

    def train_to_the_end(self, checkpoint: Path | None) -> Path:
        """Train, from a checkpoint if there is one, and write the result.

        Returns:
            the folder `unfinished` with the result, which one rank then moves to its place.

        Raises:
            Interrupted: a signal, or data that does not come, ended training early, after a checkpoint.
            NonFiniteLossError: the loss of any step was not finite.
        """
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except _NoData as outage:
            self._save_between_steps()
            where = f"stopped before step {self.state.global_step + 1} of {self.state.max_steps} in {self.args.folder}"
            raise Interrupted(f"{outage} Training {where}, with a checkpoint.") from outage
        self.check_completed()
        partial = self.args.folder / "unfinished"
        self.save_model(str(partial))
        if self.args.process_index == 0:
            self.state.save_to_json(str(partial / "trainer_state.json"))
        return partial

    def _save_between_steps(self) -> None:
        """A checkpoint of the last step, unless it has one."""
        self.stop_on_signal.settle()
        last = newest_checkpoint(self.args.folder)
        if self.state.global_step and (last is None or step_of(last) < self.state.global_step):
            self._save_checkpoint(self.model, trial=None)

    def check_completed(self) -> None:
        """Call after train(); raises if training did not complete.

        Raises:
            Interrupted: a signal ended it early, after a checkpoint.
            NonFiniteLossError: the loss of any step was not finite.
        """
        self.stop_if_not_finite()
        if self.stop_on_signal.stopped:
            raise Interrupted(
                f"stopped by a signal at step {self.state.global_step} of {self.state.max_steps} in "
                f"{self.args.output_dir}."
            )

    def release(self) -> None:
        """Release the Accelerator before the next stage makes its own: with DeepSpeed accelerate refuses a second."""
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        AcceleratorState._reset_state()

    def get_batch_samples(self, *args, **kwargs):
        """The batches of a step.

        Raises:
            _NoData: on every rank, if what one of them reads does not answer.
        """
        start = time.perf_counter()
        samples, outage = ([], None), None
        try:
            samples = super().get_batch_samples(*args, **kwargs)
        except UnavailableError as error:
            outage = own_message(error)
        if self.stop_on_signal.any_rank(outage is not None):
            raise _NoData(outage or "another process of the run has no data.")
        self.metrics_log.waited += time.perf_counter() - start
        return samples

    def _prepare_input(self, data):
        """Copies from pinned memory that the host does not wait for."""
        if isinstance(data, Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the averaged metrics to a training step's line."""
        if "loss" in logs:
            self.stop_if_not_finite()
            logs |= self.metrics_log.line(self.counters())
        super().log(logs, start_time)

    def stop_if_not_finite(self) -> None:
        """Raise on every rank if the loss of any rank was not finite at any step since the start.

        Raises:
            NonFiniteLossError: names the step and where the last checkpoint is.
        """
        step = self.metrics_log.first_bad_step()
        if step is not None:
            raise NonFiniteLossError(
                f"the loss was not finite at step {step}. Nothing was saved since; the last checkpoint, if there is "
                f"one, is in {self.args.output_dir}. {self.remedy}"
            )

    def _save_checkpoint(self, model, trial):
        """Atomic: what Trainer and a subclass write, then the mark; then old checkpoints are deleted."""
        self.stop_if_not_finite()
        folder = self.args.folder
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # Trainer rotates too early
        try:
            with writing(checkpoint, self._checkpoint_bytes()):
                super()._save_checkpoint(model, trial)
                self.save_extra(checkpoint)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_complete(checkpoint, self.facts)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(folder, limit, self.state.best_model_checkpoint)

    def save_extra(self, checkpoint: Path) -> None:
        """Write into a checkpoint what Trainer does not know. Called on every rank."""

    def _checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: the weights, AdamW's two moments of them, and small change."""
        trained = [p for p in self.accelerator.unwrap_model(self.model).parameters() if p.requires_grad]
        return 3 * sum(p.numel() * p.element_size() for p in trained) + 2**20

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write what is trained, and nothing else."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_trained(folder, state_dict)
        # As text: nobody should have to unpickle a file to read how a checkpoint was made.
        (folder / "training_args.json").write_text(
            json.dumps(self.args.to_dict(), indent=2, default=str) + "\n", encoding="utf-8"
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)


def set_learning_rate(optimizer: torch.optim.Optimizer, parameters: set[int], learning_rate: float) -> None:
    """Give these parameters, by id, a learning rate of their own; the other options of their groups stay."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in parameters]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in parameters]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
