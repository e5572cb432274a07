"""A Trainer whose checkpoints are whole or are not there, that stops on a signal and at a loss that is not finite."""

import json
import os
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import Trainer, TrainerCallback, set_seed

from dcr_hf.training.checkpoints import mark_whole, rotate, writing
from dcr_hf.training.metrics_log import StepLog
from dcr_hf.training.signals import Interrupted, StopOnSignal


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; nothing was saved since."""


class SeedRanks(TrainerCallback):
    """Trainer seeds every rank alike; noise, timesteps, views and dropout must differ between them. Set when all is
    prepared: what a strategy draws while it wraps the model then changes nothing."""

    def on_train_begin(self, args, state, control, **kwargs):
        set_seed(args.seed + args.process_index)


class ResumableTrainer(Trainer):
    """What every training here has in common. `compute_loss` of a subclass returns a mean over its batch, and calls
    `step_log.begin` and `step_log.record`.

    Args:
        facts: what a run that goes on from this one's checkpoints must agree on, see `checkpoints.check_resume`.
        args, kwargs: passed on to `transformers.Trainer`.
    """

    remedy = "Try a lower learning rate."
    """What to try when the loss is not finite."""

    def __init__(self, *args, facts: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not self.is_fsdp_enabled:
            raise ValueError(
                f"the launch configuration asks for FSDP, but accelerate runs {self.accelerator.distributed_type} on "
                f"{self.args.device.type}: FSDP needs GPUs. Use accelerate_configs/ddp.yaml or cpu.yaml here."
            )
        # compute_loss returns a mean over the batch: the Trainer then averages over accumulated batches, not sums.
        self.model_accepts_loss_kwargs = False
        self.facts = facts or {}
        self.step_log = StepLog(self.args.world_size, self.args.device)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.add_callback(SeedRanks())

    def counters(self) -> dict[str, int]:
        """What this rank has counted since the start, beside images; logged as rates."""
        return {}

    def train(self, *args, **kwargs):
        with self.stop_on_signal.listening():
            return super().train(*args, **kwargs)

    def finish(self) -> None:
        """Behind `train`: raise if it did not come to its end.

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
        """Behind the last use. The next stage has an Accelerator of its own; with DeepSpeed accelerate refuses a
        second one beside the first."""
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        AcceleratorState._reset_state()

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.step_log.waited += time.perf_counter() - start
        return samples

    def _prepare_input(self, data):
        """Copies from pinned memory that the host does not wait for."""
        if isinstance(data, Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a training step's line what `StepLog` kept."""
        if "loss" in logs:
            self.stop_if_not_finite()
            logs |= self.step_log.line(self.counters())
        super().log(logs, start_time)

    def stop_if_not_finite(self) -> None:
        """Raise on every rank if the loss of any rank was not finite at any step since the start.

        Raises:
            NonFiniteLossError: names the step and where the last checkpoint is.
        """
        step = self.step_log.first_bad_step()
        if step is not None:
            raise NonFiniteLossError(
                f"the loss was not finite at step {step}. Nothing was saved since; the last checkpoint, if there is "
                f"one, is in {self.args.output_dir}. {self.remedy}"
            )

    def _save_checkpoint(self, model, trial):
        """Whole or not there: what Trainer writes, what a subclass adds, at last the mark; old ones go after that."""
        self.stop_if_not_finite()
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # Trainer rotates too early
        try:
            with writing(checkpoint, self._checkpoint_bytes()):
                super()._save_checkpoint(model, trial)
                self.save_beside(checkpoint)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_whole(checkpoint, self.facts)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(folder, limit, self.state.best_model_checkpoint)

    def save_beside(self, checkpoint: Path) -> None:
        """Write into a checkpoint what Trainer does not know of. Called on every rank."""

    def _checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: the weights, AdamW's two moments of them, and small change."""
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return 3 * trained + 2**20

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """What is trained, and nothing else."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_trained(folder, state_dict)
        # As text: nobody should have to unpickle a file to read how a checkpoint was made.
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)


def set_learning_rate(optimizer: torch.optim.Optimizer, parameters: set[int], learning_rate: float) -> None:
    """Give these parameters, by id, a learning rate of their own; whatever else their groups say stays."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in parameters]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in parameters]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
