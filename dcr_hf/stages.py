"""The two stages: what is frozen, what is trained, where it is saved and when it is finished."""

import copy
import math
import shutil
from collections import Counter
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

from dcr_hf.condition import ADAPTER_WEIGHTS, ConditionModel, Projector, find_projector
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.data import TrainingImages
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.encoder import ImageEncoder
from dcr_hf.sources import Source
from dcr_hf.trainer import DCRTrainer

STAGE1, STAGE2 = "stage1", "stage2"


def stage_args(recipe: Recipe, args: DCRConfig, stage: str) -> DCRConfig:
    """The run's arguments with the stage's own folder, budget and learning rate."""
    args = copy.deepcopy(args)
    args.output_dir = str(Path(args.output_dir) / stage)
    args.max_steps = getattr(recipe, f"{stage}_max_steps")
    args.learning_rate = getattr(recipe, f"{stage}_learning_rate")
    args.push_to_hub = False  # what is uploaded is the export, not a stage's checkpoints
    return args


def is_finished(stage_folder: Path) -> bool:
    """Whether the stage's final weights are in place; they are written last."""
    return (stage_folder / ADAPTER_WEIGHTS).is_file() or find_projector(stage_folder) is not None


def projector_stage(encoder: ImageEncoder, condition_width: int, seed: int) -> ConditionModel:
    """Stage 1: a fresh projector is trained on the frozen encoder."""
    torch.manual_seed(seed)
    return ConditionModel(encoder, Projector(encoder.embedding_width, condition_width))


def encoder_stage(encoder: ImageEncoder, projector: Projector, args: DCRConfig) -> ConditionModel:
    """Stage 2: the vision encoder is trained by LoRA through the frozen projector."""
    torch.manual_seed(args.seed)
    encoder.add_lora(args.lora_rank, args.lora_alpha, args.lora_dropout)
    return ConditionModel(encoder, projector.requires_grad_(False))


def train_stage(model: ConditionModel, args: DCRConfig, denoiser: FrozenDenoiser, source: Source) -> None:
    """Train to `args.max_steps`, from the newest checkpoint in `args.output_dir` if there is one; save the result."""
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
    )
    trainer = DCRTrainer(model, args, denoiser, train_dataset=images)
    folder = Path(args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    trainer.stop_if_not_finite()
    trainer.save_state()
    save_final(trainer, folder)


def save_final(trainer: DCRTrainer, folder: Path) -> None:
    """The trained weights beside the checkpoints, moved there whole, so that what is there is finished."""
    partial = folder / "unfinished"
    trainer.save_model(str(partial))
    if trainer.args.should_save:
        for path in sorted(partial.iterdir(), key=lambda path: path.name == ADAPTER_WEIGHTS):  # weights last
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        partial.rmdir()
    trainer.accelerator.wait_for_everyone()


def describe(model: ConditionModel, args: DCRConfig, images: int | None) -> str:
    """What a stage will train and what it costs, for people."""
    modules = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            modules[_module_of(name)] += parameter.numel()
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
            f"{Path(args.output_dir).name}: {args.max_steps:,} steps at learning rate {args.learning_rate:g}",
            f"  trainable parameters  {sum(modules.values()):,}",
            *(f"    {name:<{width}}  {count:>12,}" for name, count in modules.items()),
            f"  images a step         {per_step:,} = {batch} a device x {args.gradient_accumulation_steps} "
            f"accumulated x {args.world_size} devices",
            f"  UNet evaluations      {both:,} a step, forward and backward"
            + (f", and {forward:,} forward only" if forward else ""),
            f"  steps an epoch        {epoch}",
        ]
    )


def _module_of(parameter_name: str) -> str:
    """'encoder.model.base_model.model.vision_model.encoder.layers.3...' -> 'encoder.vision_model'"""
    parts = [part for part in parameter_name.split(".") if part not in ("model", "base_model")]
    return ".".join(parts[:2]) if parts[0] == "encoder" else parts[0]
