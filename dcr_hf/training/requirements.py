"""What the Trainer's options need: packages, arguments, a launcher. Tried before anything is loaded."""

import difflib
import importlib.util
import os

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from dcr_hf.config.base import TrainingOptions
from dcr_hf.config.options import refuse_without_effect
from dcr_hf.errors import UserError, as_user_error
from dcr_hf.files import check_writable

_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}


def check_trainer_options(args: TrainingOptions) -> None:
    """Raise UserError for an option that has no effect here, or that could not be used when training begins."""
    refuse_without_effect(args)
    check_writable("--output_dir", args.folder)
    _check_report_to(args)
    _check_optimizer(args)
    _check_deepspeed(args)


def _check_report_to(args: TrainingOptions) -> None:
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(INTEGRATION_TO_CALLBACK)}."
            raise UserError(f"--report_to {name} is unknown. {hint}")
        if name not in get_available_reporting_integrations():
            package = _PACKAGES.get(name, name)
            raise UserError(
                f"--report_to {name} needs a package that is not installed: pip install {package}, or give "
                "--report_to tensorboard."
            )


def _check_optimizer(args: TrainingOptions) -> None:
    """Make the optimizer and the schedule, for one weight."""
    weight = torch.nn.Parameter(torch.zeros(1))
    name = getattr(args.optim, "value", args.optim)
    with as_user_error(f"--optim {name}", ImportError, ValueError, TypeError, KeyError, RuntimeError):
        kind, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
        if not arguments.keys() & {"model", "params", "optimizer_dict"}:  # those are made for a model
            kind([weight], **arguments)
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    options = args.lr_scheduler_kwargs or {}
    assert isinstance(options, dict)  # TrainingArguments has read the JSON
    with as_user_error(f"--lr_scheduler_type {schedule}", ValueError, TypeError, KeyError):
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD([weight], lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(1000),
            num_training_steps=1000,
            scheduler_specific_kwargs=options,
        )


def _check_deepspeed(args: TrainingOptions) -> None:
    if not args.deepspeed:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("--deepspeed needs a package that is not installed: pip install deepspeed.")
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "--deepspeed needs a launcher, which says how many ranks there are: start the recipe with accelerate "
            "launch --config_file accelerate_configs/deepspeed_zero2.yaml, or with torchrun."
        )
