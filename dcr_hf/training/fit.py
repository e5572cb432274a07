"""Train one stage from where it is to its result."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from dcr_hf.config.base import TrainingOptions
from dcr_hf.data.dealing import Source
from dcr_hf.data.stream import StreamState, TrainingImages
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.checkpoints import step_of
from dcr_hf.training.gradient_conflict_plot import write_conflict
from dcr_hf.training.plan import StagePlan
from dcr_hf.training.stage_results import finish_from, put_in_place
from dcr_hf.training.trainer import DCRTrainer


def train_stage(
    plan: StagePlan,
    model: ConditionModel,
    denoiser: FrozenDenoiser,
    source: Source,
    evaluation: Callable[[ImageEncoder], dict[str, float]] | None,
) -> None:
    """Train to the end of the plan, from its newest complete checkpoint if there is one, and save the result.

    Raises:
        Interrupted: a signal ended training early, after a checkpoint.
    """
    args, checkpoint = plan.args, plan.checkpoint
    if checkpoint is not None and step_of(checkpoint) >= args.max_steps:  # killed between that and the result
        if args.process_index == 0:
            finish_from(checkpoint, plan.folder)
        barrier(args)  # the next stage reads it
        return
    images = TrainingImages(
        source,
        model.encoder.image_size,
        batch_size=args.per_device_train_batch_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        rank=args.process_index,
        world_size=args.world_size,
        num_workers=args.dataloader_num_workers,
        shuffle_buffer=args.shuffle_buffer,
        max_bad_fraction=args.max_bad_fraction,
        state=StreamState.read(checkpoint) if checkpoint else None,
    )
    callbacks = tensorboard(args, checkpoint)
    trainer = DCRTrainer(model, args, denoiser, images, evaluation=evaluation, facts=plan.facts, callbacks=callbacks)
    partial = trainer.train_to_the_end(checkpoint)
    if args.process_index == 0:
        write_conflict(partial, trainer.state.log_history)
        put_in_place(partial, plan.folder)
    trainer.release()


def tensorboard(args: TrainingOptions, checkpoint: Path | None) -> list[TrainerCallback]:
    """One log for a stage however often it is interrupted: what was logged after `checkpoint` is taken back.

    transformers' own callback would begin another log at every start.
    """
    if "tensorboard" not in (args.report_to or []):
        return []
    args.report_to = [name for name in args.report_to or [] if name != "tensorboard"]
    if args.process_index:
        return []
    step = step_of(checkpoint) if checkpoint else 0
    return [TensorBoardCallback(SummaryWriter(str(args.folder / "runs"), purge_step=step + 1))]


def barrier(args: TrainingArguments) -> None:
    """Wait until every rank is here."""
    if args.world_size > 1:
        torch.distributed.barrier()
