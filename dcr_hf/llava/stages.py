"""A stage's model, its training, its result, and the LLaVA that comes of all results."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from dcr_hf.cli import loaded_complete
from dcr_hf.llava.conversations import CHAT_TEMPLATE
from dcr_hf.llava.examples import Examples
from dcr_hf.llava.folder import LlavaFolder, made_whole, processor_for, save_processor
from dcr_hf.llava.model import TrainedLlava, TrainedWeights, part_of
from dcr_hf.llava.plan import LlavaStagePlan
from dcr_hf.llava.trainer import LlavaTrainer
from dcr_hf.llava.weights import rewrite, weight_files
from dcr_hf.training.fit import tensorboard


def training_processor(start: LlavaFolder, pads: bool = True) -> LlavaProcessor:
    """The processor of training and, where it `pads` images to squares, of what comes of it; LLaVA-1.5's template."""
    image_token = start.processor.image_token
    tokenizer = start.processor.tokenizer
    return processor_for(start.tower, tokenizer, pads, chat_template=CHAT_TEMPLATE, image_token=image_token)


def build_model(plan: LlavaStagePlan, start: LlavaFolder) -> TrainedLlava:
    """The model in which the stage's part is to be trained, with what earlier stages trained in it."""
    dtype = torch.bfloat16 if plan.args.bf16 else torch.float32
    with loaded_complete(plan.args):
        model = TrainedLlava.from_pretrained(start.folder, dtype=dtype)
    torch.manual_seed(plan.args.seed)  # of the adapters
    plan.freeze(model)
    if plan.args.deepspeed_plugin is None:  # DeepSpeed keeps float32 copies of its own
        model.keep_trained_in_float32()
    for folder in plan.earlier:
        if folder.is_dir():
            model.load_trained(folder)
    return model


def train_stage(plan: LlavaStagePlan, start: LlavaFolder, examples: Examples) -> None:
    """Train from the newest complete checkpoint, if there is one, to the stage's end, and save.

    Raises:
        Interrupted: a signal ended training early, after a checkpoint.
    """
    checkpoint = plan.checkpoint
    trainer = LlavaTrainer(
        build_model(plan, start),
        plan.args,
        examples,
        projector_learning_rate=plan.projector_learning_rate,
        facts=plan.facts,
        callbacks=tensorboard(plan.args, checkpoint),
    )
    partial = trainer.train_to_the_end(checkpoint)
    if plan.args.process_index == 0:
        partial.rename(plan.result)
    trainer.release()


def finish_from_last(plan: LlavaStagePlan) -> None:
    """The stage's result from its last checkpoint, where a run died between the two. To be called by one process,
    before the others look whether the stage is finished."""
    checkpoint = plan.checkpoint
    if checkpoint is None or plan.finished:
        return
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if state["global_step"] < (plan.args.max_steps if plan.args.max_steps > 0 else state["max_steps"]):
        return
    partial = plan.folder / "unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in [*weight_files(checkpoint), *checkpoint.glob("*.index.json"), checkpoint / "trainer_state.json"]:
        shutil.copyfile(path, partial / path.name)
    partial.rename(plan.result)


def write_result(start: LlavaFolder, trained: list[Path], lora_scale: float, output: Path) -> None:
    """The beginning with what was trained in it, as a LlavaForConditionalGeneration folder; shard by shard.

    Raises:
        ExportError: what was trained does not fit, or what was written is incomplete.
    """
    weights = TrainedWeights(trained, lora_scale)
    with made_whole(output, start.bytes) as folder:
        rewrite(start.folder, folder, weights.over)
        weights.check_all_used()
        shutil.copyfile(start.folder / "config.json", folder / "config.json")
        save_processor(training_processor(start), folder, start.folder)


def describe(plan: LlavaStagePlan, start: LlavaFolder, examples: Examples) -> str:
    """What a stage will train and on what, for people."""
    args = plan.args
    with torch.device("meta"):
        model = TrainedLlava(LlavaForConditionalGeneration(start.config))
        plan.freeze(model)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)] += parameter.numel()
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    step = batch * accumulated * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(examples) / step)
    pictures = sum(length > 0 for length in examples.lengths)
    rate = plan.projector_learning_rate
    projector = "" if rate is None else f", the projector at {rate:g}"
    return "\n".join(
        [
            f"{plan.name}: {steps:,} steps at learning rate {args.learning_rate:g}{projector}",
            f"  trainable parameters  {sum(parts.values()):,}",
            *(f"    {part:<22}  {count:>14,}" for part, count in parts.items()),
            f"  conversations         {len(examples):,}, {pictures:,} of them with an image",
            f"  conversations a step  {step:,} = {batch} a device x {accumulated} accumulated x {args.world_size} "
            "devices",
            f"  tokens                {start.tower.image_tokens} an image, {args.model_max_length} at most",
        ]
    )
