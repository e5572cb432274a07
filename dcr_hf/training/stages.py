"""The two stages, and both at once: what is frozen, what is trained, where it is saved and when it is finished."""

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy

from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.data.sources import Source
from dcr_hf.data.stream import StreamState, TrainingImages
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import PROJECTOR_FOLDER, Projector, find_projector
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS, has_encoder
from dcr_hf.training.checkpoints import step_of, whole_checkpoints
from dcr_hf.training.gradient_conflict_plot import write_conflict
from dcr_hf.training.trainer import DCRTrainer

STAGE1, STAGE2, END_TO_END = "stage1", "stage2", "end_to_end"
_LAST = (PROJECTOR_FOLDER, ADAPTER_WEIGHTS, VISION_WEIGHTS)


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a run trains, in order."""
    return {"1": [STAGE1], "2": [STAGE2], "all": [STAGE1, STAGE2], "end_to_end": [END_TO_END]}[recipe.stage]


def stage_args(recipe: Recipe, args: DCRConfig, stage: str) -> DCRConfig:
    """The run's arguments with the stage's own folder, budget and learning rate. End to end, the encoder has those of
    stage 2 and the projector the learning rate of stage 1."""
    args = copy.deepcopy(args)
    args.output_dir = str(Path(args.output_dir) / stage)
    args.max_steps = recipe.stage1_max_steps if stage == STAGE1 else recipe.stage2_max_steps
    args.learning_rate = recipe.stage1_learning_rate if stage == STAGE1 else recipe.stage2_learning_rate
    if stage == END_TO_END and args.projector_learning_rate is None:
        args.projector_learning_rate = recipe.stage1_learning_rate
    args.push_to_hub = False  # what is uploaded is the export, not a stage's checkpoints
    if stage == STAGE1:
        args.objective = recipe.stage1_objective or args.objective
        # The encoder, which would be measured and kept near, does not change there.
        args.eval_strategy, args.load_best_model_at_end = IntervalStrategy.NO, False
        args.keep_weight = 0.0
        if args.objective != "dcr":  # a contrast of embeddings has no gradient there that could conflict
            args.log_gradient_conflict_every = 0
    return args


def is_finished(stage_folder: Path) -> bool:
    """Whether the stage's final weights are in place; they are written last, the encoder's behind the projector's."""
    return find_projector(stage_folder) is not None if stage_folder.name == STAGE1 else has_encoder(stage_folder)


def projector_stage(
    encoder: ImageEncoder, condition_width: int, seed: int, patch_keep_ratio: float | None = None
) -> ConditionModel:
    """Stage 1: a fresh projector is trained on the frozen encoder; with a ratio, one of patches too."""
    torch.manual_seed(seed)
    patch_width = None if patch_keep_ratio is None else encoder.patch_width
    return ConditionModel(encoder, Projector(encoder.embedding_width, condition_width, patch_width), patch_keep_ratio)


def encoder_stage(encoder: ImageEncoder, projector: Projector, args: DCRConfig) -> ConditionModel:
    """Stage 2: the vision encoder is trained through the frozen projector, by LoRA or (rank 0) itself."""
    torch.manual_seed(args.seed)
    if args.lora_rank:
        encoder.add_lora(args.lora_rank, args.lora_alpha, args.lora_dropout)
    else:
        if args.keep_weight:
            encoder.keep_original()
        encoder.unfreeze()
    return ConditionModel(encoder, projector.requires_grad_(False), args.patch_ratio)


def end_to_end_stage(encoder: ImageEncoder, condition_width: int, args: DCRConfig) -> ConditionModel:
    """A fresh projector and the encoder together, from the start."""
    projector = projector_stage(encoder, condition_width, args.seed, args.patch_ratio).projector
    model = encoder_stage(encoder, projector, args)
    projector.requires_grad_(True)
    return model


def train_stage(
    model: ConditionModel,
    args: DCRConfig,
    denoiser: FrozenDenoiser,
    source: Source,
    evaluation: Callable[[ImageEncoder], dict[str, float]] | None,
    facts: dict[str, Any],
) -> None:
    """Train to `args.max_steps`, from the newest whole checkpoint in `args.output_dir` if there is one, and save.

    Raises:
        Interrupted: a signal ended training early, after a checkpoint.
    """
    folder = Path(args.output_dir)
    checkpoint = next(reversed(whole_checkpoints(folder)), None)
    if checkpoint is not None and step_of(checkpoint) >= args.max_steps:  # it died between that and the result
        if args.process_index == 0:
            finish_from(checkpoint, folder)
        wait_for_all(args)  # the next stage reads it
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
    callbacks = tensorboard(args, step_of(checkpoint) if checkpoint else 0)
    trainer = DCRTrainer(model, args, denoiser, evaluation, facts, train_dataset=images, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.finish()
    partial = folder / "unfinished"
    trainer.save_model(str(partial))
    if args.process_index == 0:
        trainer.state.save_to_json(partial / "trainer_state.json")
        write_conflict(partial, trainer.state.log_history)
        put_in_place(partial, folder)
    trainer.release()


def tensorboard(args: DCRConfig, step: int) -> list[TensorBoardCallback]:
    """One log for a stage however often it is interrupted: what was logged behind `step` is taken back. Transformers'
    own would begin another log at every start."""
    if "tensorboard" not in args.report_to:
        return []
    args.report_to = [name for name in args.report_to if name != "tensorboard"]
    if args.process_index:
        return []
    return [TensorBoardCallback(SummaryWriter(Path(args.output_dir) / "runs", purge_step=step + 1))]


def wait_for_all(args: TrainingArguments) -> None:
    """Until every process is here."""
    if args.world_size > 1:
        torch.distributed.barrier()


def finish_from(checkpoint: Path, folder: Path) -> None:
    """The stage's result from its last checkpoint, or from its best, where that was asked for and is the result."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    options = json.loads((checkpoint / "training_args.json").read_text())
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

    def place(path: Path) -> int:
        return _LAST.index(path.name) if path.name in _LAST else -1

    for path in sorted(partial.iterdir(), key=place):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    partial.rmdir()


def describe(model: ConditionModel, args: DCRConfig, images: int | None) -> str:
    """What a stage will train and what it costs, for people."""
    modules = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            modules[_module_of(name)] += parameter.numel()
    kept = model.kept_patches
    seen = f"c, and tokens of {kept} of {model.encoder.patch_count} patches; without the fast path, not exact then"
    batch = args.per_device_train_batch_size
    per_step = batch * args.gradient_accumulation_steps * args.world_size
    both, forward = (count * args.gradient_accumulation_steps * args.world_size for count in args.unet_evaluations)
    epoch = (
        f"about {math.ceil(images / per_step):,}"
        if images
        else "unknown (the data does not say how many images it has)"
    )
    width = max(len(name) for name in modules)
    return "\n".join(
        [
            f"{Path(args.output_dir).name}: {args.max_steps:,} steps at learning rate {args.learning_rate:g}"
            + (f", the projector at {args.projector_learning_rate:g}" if args.projector_learning_rate else ""),
            f"  trainable parameters  {sum(modules.values()):,}",
            *(f"    {name:<{width}}  {count:>12,}" for name, count in modules.items()),
            f"  images a step         {per_step:,} = {batch} a device x {args.gradient_accumulation_steps} "
            f"accumulated x {args.world_size} devices",
            f"  objective             {args.objective}",
            *([f"  condition             {seen}"] if kept else []),
            f"  UNet evaluations      {both:,} a step, forward and backward"
            + (f", and {forward:,} forward only" if forward else ""),
            f"  steps an epoch        {epoch}",
            *(
                [f"  gradient conflict     every {every:,} steps, for two more backward passes of each of its batches"]
                if (every := args.log_gradient_conflict_every)
                else []
            ),
        ]
    )


def _module_of(parameter_name: str) -> str:
    """'encoder.model.base_model.model.vision_model.encoder.layers.3...' -> 'encoder.vision_model'"""
    parts = [part for part in parameter_name.split(".") if part not in ("model", "base_model")]
    return ".".join(parts[:2]) if parts[0] == "encoder" else parts[0]
