"""Align and instruct: what each trains and how, when it is finished, and the LLaVA that comes of it."""

import copy
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from dcr_hf.cli import loaded_complete
from dcr_hf.config.options import facts_of
from dcr_hf.llava.config import LlavaRecipe, LlavaTraining
from dcr_hf.llava.conversations import CHAT_TEMPLATE
from dcr_hf.llava.examples import Examples
from dcr_hf.llava.folder import LlavaFolder, made_whole, processor_for, save_processor
from dcr_hf.llava.model import TrainedLlava, TrainedWeights, part_of
from dcr_hf.llava.trainer import LlavaTrainer
from dcr_hf.llava.weights import rewrite, weight_files
from dcr_hf.training.checkpoints import newest_checkpoint
from dcr_hf.training.fit import tensorboard

ALIGN, INSTRUCT = "align", "instruct"
TRAINED = "trained"
"""Folder of a stage's result: the weights that it trained."""


def stage_args(recipe: LlavaRecipe, args: LlavaTraining, stage: str) -> LlavaTraining:
    """The run's arguments with the stage's own folder, budget, batch and learning rate."""
    args = copy.deepcopy(args)
    args.output_dir = str(args.folder / stage)
    if stage == ALIGN:
        args.max_steps, args.learning_rate = recipe.align_max_steps, recipe.align_learning_rate
        args.per_device_train_batch_size = recipe.align_batch_size
        args.train_sampling_strategy = "random"
        args.lora_rank, args.lora_alpha = 0, 0.0
    else:
        default = 2e-4 if args.lora_rank else 2e-5
        given = recipe.instruct_learning_rate
        args.max_steps, args.learning_rate = recipe.instruct_max_steps, default if given is None else given
        args.per_device_train_batch_size = recipe.instruct_batch_size
    if args.deepspeed:  # its `auto` values were filled in from what the stage has now replaced
        args.hf_deepspeed_config = HfTrainerDeepSpeedConfig(args.deepspeed)
        args.hf_deepspeed_config.trainer_config_process(args)
        args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=args.hf_deepspeed_config)
    return args


def resume_facts(recipe: LlavaRecipe, args: LlavaTraining, stage: str) -> dict[str, Any]:
    """What changes the data or the arithmetic of a stage; `args` are the stage's own."""
    other = INSTRUCT if stage == ALIGN else ALIGN
    of_recipe = {name: value for name, value in facts_of(recipe).items() if not name.startswith(other)}
    return of_recipe | facts_of(args) | {"world_size": args.world_size, "device": args.device.type}


def is_finished(stage_folder: Path) -> bool:
    return (stage_folder / TRAINED).is_dir()


def training_processor(start: LlavaFolder) -> LlavaProcessor:
    """The processor of training and of what comes of it: images padded to squares, LLaVA-1.5's template."""
    image_token = start.processor.image_token
    tokenizer = start.processor.tokenizer
    return processor_for(start.tower, tokenizer, pads=True, chat_template=CHAT_TEMPLATE, image_token=image_token)


def stage_model(start: LlavaFolder, args: LlavaTraining, stage: str, before: Path | None) -> TrainedLlava:
    """The model in which the stage's part is to be trained.

    Args:
        before: what an earlier stage trained.
    """
    with loaded_complete(args):
        model = TrainedLlava.from_pretrained(start.place, dtype=torch.bfloat16 if args.bf16 else torch.float32)
    _freeze(model, args, stage)
    if args.deepspeed_plugin is None:  # DeepSpeed keeps float32 copies of its own
        model.keep_trained_in_float32()
    if before is not None:
        model.load_trained(before)
    return model


def _freeze(model: TrainedLlava, args: LlavaTraining, stage: str) -> None:
    torch.manual_seed(args.seed)  # of the adapters
    if stage == ALIGN:
        model.train_projector()
    else:
        model.train_language(args.lora_rank, args.lora_alpha or 0.0, args.lora_dropout)


def train_stage(
    start: LlavaFolder,
    recipe: LlavaRecipe,
    args: LlavaTraining,
    stage: str,
    examples: Examples,
    before: Path | None,
) -> None:
    """Train from the newest complete checkpoint in `args.output_dir`, if there is one, to the stage's end, and save.

    Raises:
        Interrupted: a signal ended training early, after a checkpoint.
    """
    folder = args.folder
    checkpoint = newest_checkpoint(folder)
    trainer = LlavaTrainer(
        stage_model(start, args, stage, before),
        args,
        examples,
        projector_learning_rate=recipe.projector_learning_rate if stage == INSTRUCT else None,
        facts=resume_facts(recipe, args, stage),
        callbacks=tensorboard(args, checkpoint),
    )
    partial = trainer.train_to_the_end(checkpoint)
    if args.process_index == 0:
        partial.rename(folder / TRAINED)
    trainer.release()


def finish_from_last(args: LlavaTraining) -> None:
    """The stage's result from its last checkpoint, where a run died between the two. To be called by one process,
    before the others look whether the stage is finished."""
    folder = args.folder
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None or is_finished(folder):
        return
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if state["global_step"] < (args.max_steps if args.max_steps > 0 else state["max_steps"]):
        return
    partial = folder / "unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in [*weight_files(checkpoint), *checkpoint.glob("*.index.json"), checkpoint / "trainer_state.json"]:
        shutil.copyfile(path, partial / path.name)
    partial.rename(folder / TRAINED)


def write_result(start: LlavaFolder, trained: list[Path], lora_scale: float, output: Path) -> None:
    """The beginning with what was trained in it, as a LlavaForConditionalGeneration folder; shard by shard.

    Raises:
        ExportError: what was trained does not fit, or what was written is incomplete.
    """
    weights = TrainedWeights(trained, lora_scale)
    with made_whole(output, start.bytes) as folder:
        rewrite(start.place, folder, weights.over)
        weights.check_all_used()
        shutil.copyfile(start.place / "config.json", folder / "config.json")
        save_processor(training_processor(start), folder, start.place)


def describe(start: LlavaFolder, recipe: LlavaRecipe, args: LlavaTraining, stage: str, examples: Examples) -> str:
    """What a stage will train and on what, for people."""
    with torch.device("meta"):
        model = TrainedLlava(LlavaForConditionalGeneration(start.config))
        _freeze(model, args, stage)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)] += parameter.numel()
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    step = batch * accumulated * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(examples) / step)
    pictures = sum(length > 0 for length in examples.lengths)
    projector = f", the projector at {recipe.projector_learning_rate:g}" if stage == INSTRUCT else ""
    return "\n".join(
        [
            f"{stage}: {steps:,} steps at learning rate {args.learning_rate:g}{projector}",
            f"  trainable parameters  {sum(parts.values()):,}",
            *(f"    {part:<22}  {count:>14,}" for part, count in parts.items()),
            f"  conversations         {len(examples):,}, {pictures:,} of them with an image",
            f"  conversations a step  {step:,} = {batch} a device x {accumulated} accumulated x {args.world_size} "
            "devices",
            f"  tokens                {start.tower.image_tokens} an image, {args.model_max_length} at most",
        ]
    )
