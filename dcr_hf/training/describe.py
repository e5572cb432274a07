"""What a stage will train and what it costs, for people."""

import math
from collections import Counter

from dcr_hf.models.condition import ConditionModel
from dcr_hf.training.plan import StagePlan


def describe(plan: StagePlan, model: ConditionModel, images: int | None) -> str:
    """The plan of a stage in lines: trainable parameters, images and UNet evaluations a step, steps an epoch."""
    args = plan.args
    modules: Counter[str] = Counter()
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
            f"{plan.name}: {args.max_steps:,} steps at learning rate {args.learning_rate:g}"
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
                [f"  gradient conflict     every {every:,} steps, for two more backward passes of each batch"]
                if (every := args.log_gradient_conflict_every)
                else []
            ),
        ]
    )


def _module_of(parameter_name: str) -> str:
    """'encoder.model.base_model.model.vision_model.encoder.layers.3...' -> 'encoder.vision_model'"""
    parts = [part for part in parameter_name.split(".") if part not in ("model", "base_model")]
    return ".".join(parts[:2]) if parts[0] == "encoder" else parts[0]
