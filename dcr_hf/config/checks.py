"""Values of DCRConfig that are wrong by themselves or together."""

import os
from typing import TYPE_CHECKING

from dcr_hf.config.options import schedule_of
from dcr_hf.errors import UserError

if TYPE_CHECKING:
    from dcr_hf.config.training import DCRConfig


def check_values(args: "DCRConfig") -> None:
    """Raise UserError, which names the option and what it may be."""
    _check_batches(args)
    _check_weights(args)
    _check_ranges(args)
    _check_pair_chunk_size(args.pair_chunk_size)
    _check_negatives(args)
    _check_diagnostics(args)
    _check_warmup(args)
    _check_compile(args)


def _check_batches(args: "DCRConfig") -> None:
    if args.per_device_train_batch_size < 2:
        raise UserError(
            f"--per_device_train_batch_size is {args.per_device_train_batch_size}: DCR contrasts the images of a "
            "batch, so it needs at least 2 on each device (the paper uses 16)."
        )
    if not args.dataloader_drop_last or args.remove_unused_columns or args.auto_find_batch_size:
        raise UserError(
            "--dataloader_drop_last must stay true, and --remove_unused_columns and --auto_find_batch_size false: "
            "the batch size is part of DCR's objective, and its batches are not rows of columns."
        )


def _check_weights(args: "DCRConfig") -> None:
    for name in ("lambda_rec", "lambda_con", "keep_weight", "anchor_weight"):
        if not getattr(args, name) >= 0:  # also true for NaN
            raise UserError(f"--{name} is {getattr(args, name)}; a weight is 0 or more.")
    if args.lambda_rec == args.lambda_con == 0:
        raise UserError("--lambda_rec and --lambda_con are both 0: --objective joint would train nothing.")
    if args.contrast_space != "model" and args.noise_target != "auto":
        raise UserError(
            f"--contrast_space {args.contrast_space} takes the target from what the denoiser was trained to predict; "
            f"--noise_target {args.noise_target} would be without meaning. Leave one of them out."
        )


def _check_ranges(args: "DCRConfig") -> None:
    if not args.temperature > 0:
        raise UserError(f"--temperature is {args.temperature}; it must be above 0.")
    if not 0 < args.patch_keep_ratio <= 1:
        raise UserError(
            f"--patch_keep_ratio is {args.patch_keep_ratio}; it is a share of the patches, above 0 and at most 1."
        )
    if args.lora_rank < 0:
        raise UserError(f"--lora_rank is {args.lora_rank}; it must be above 0, or 0 for full fine-tuning.")
    if not 0 <= args.lora_dropout < 1:
        raise UserError(f"--lora_dropout is {args.lora_dropout}; it must be in [0, 1).")
    if args.shuffle_buffer < 1:
        raise UserError(f"--shuffle_buffer is {args.shuffle_buffer}; it is a number of images, at least 1.")


def _check_pair_chunk_size(size: str) -> None:
    if size != "auto" and not size.isdecimal():
        raise UserError(f"--pair_chunk_size is {size}; it is a number of pairs, 0 for all at once, or auto.")


def _check_negatives(args: "DCRConfig") -> None:
    if args.gather_conditions and args.world_size == 1:
        raise UserError(
            "--gather_conditions takes negatives from other ranks, and there is only this one. Leave it out, or start "
            "more with accelerate launch."
        )
    others = args.other_images
    if args.num_negatives is not None and not 1 <= args.num_negatives <= others:
        raise UserError(
            f"--num_negatives is {args.num_negatives}; each image has {others} others to be contrasted with: it must "
            f"be from 1 to {others}. Without it, all are used."
        )


def _check_diagnostics(args: "DCRConfig") -> None:
    for name in ("preview_steps", "log_gradient_conflict_every"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; it is a number of steps, or 0.")
    launched = {name for name in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"}
    if args.log_gradient_conflict_every and (launched or args.deepspeed or args.fp16):
        raise UserError(
            "--log_gradient_conflict_every needs each rank to hold complete gradients at their true scale: one "
            "process or DDP, in bfloat16 or float32. Leave it out under DeepSpeed, FSDP and --fp16."
        )


def _check_warmup(args: "DCRConfig") -> None:
    if args.warmup_steps and schedule_of(args) == "constant":
        raise UserError(
            f"--warmup_steps is {args.warmup_steps:g}, and --lr_scheduler_type constant has no warm-up. Give "
            "--lr_scheduler_type constant_with_warmup too."
        )


def _check_compile(args: "DCRConfig") -> None:
    if args.torch_compile_mode in ("reduce-overhead", "max-autotune"):
        raise UserError(
            f"--torch_compile_mode {args.torch_compile_mode} records CUDA graphs, whose outputs the next chunk of "
            "pairs would overwrite. Give default or max-autotune-no-cudagraphs."
        )
