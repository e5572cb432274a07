"""What every training here changes of transformers' TrainingArguments, and what every recipe's command line takes."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import TrainingArguments

from dcr_hf.config.options import BUDGET, CHECKPOINTS, DATA, LOGGING, SPEED, TRANSFORMERS, Role, option
from dcr_hf.errors import UserError, as_user_error

LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"


@contextlib.contextmanager
def _launched_with(precision: str) -> Iterator[None]:
    """Inside, the launcher's mixed precision is this one."""
    launched = os.environ.get(LAUNCHED_PRECISION)
    os.environ[LAUNCHED_PRECISION] = precision
    try:
        yield
    finally:
        del os.environ[LAUNCHED_PRECISION]
        if launched is not None:
            os.environ[LAUNCHED_PRECISION] = launched


def switch_tf32(on: bool) -> None:
    """Complete what transformers' --tf32 has set: it leaves convolutions as they were, which is in TF32, and torch's
    older name for the same, which the compiler reads, as a contradiction that torch raises an error for."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set as the module loads
    convolution.fp32_precision = "tf32" if on else "ieee"


@dataclass(kw_only=True)
class RunControl:
    """What any recipe's command line takes beside its models and data."""

    overwrite_output_dir: bool = option(
        False,
        "Delete the results and checkpoints of the same stages in --output_dir, and start over.",
        CHECKPOINTS,
        Role.NEUTRAL,
    )
    resume_anyway: bool = option(
        False,
        "Resume from a checkpoint that was written with other options. The result is not exact.",
        CHECKPOINTS,
        Role.NEUTRAL,
    )
    hub_patience: float = option(
        300.0,
        "Seconds for which requests to the hub are tried again while it does not answer. After that the run writes a "
        "checkpoint and ends with code 75.",
        CHECKPOINTS,
        Role.NEUTRAL,
    )
    dry_run: bool = option(
        False, "Check everything, print what would be trained, and stop.", CHECKPOINTS, Role.NEUTRAL
    )


@dataclass
class TrainingOptions(TrainingArguments):
    """Defaults of DCR's and of LLaVA's training; TF32 and bfloat16 where the GPU supports them, unless set."""

    SET_BY_STAGE: ClassVar[dict[str, str]] = {}
    """Options that each stage sets from the recipe -> what to give instead."""

    bf16: bool | None = option(  # type: ignore[assignment]  # None: not given
        None, "Train in bfloat16. Default: the launcher's --mixed_precision, else on where a GPU supports it.", SPEED
    )
    optim: str = option("adamw_torch", "Optimizer, by transformers' name for it.", BUDGET)
    logging_steps: float = option(10, "Log every N optimizer steps.", LOGGING, Role.NEUTRAL)
    logging_nan_inf_filter: bool = option(
        False, "Always false: a loss that is not finite stops the run and is not hidden.", TRANSFORMERS, Role.NEUTRAL
    )
    dataloader_num_workers: int = option(4, "Processes per rank that read and decode images.", SPEED)
    remove_unused_columns: bool = option(
        False, "Always false: a batch is not rows of columns.", TRANSFORMERS, Role.NEUTRAL
    )
    report_to: None | str | list[str] = option(  # noqa: RUF036 - HfArgumentParser takes the second type
        "tensorboard", "Where to log: tensorboard, wandb, none, ... as in transformers.", LOGGING, Role.NEUTRAL
    )
    ddp_find_unused_parameters: bool | None = option(
        False, "Not needed: every trained parameter gets a gradient in every step.", TRANSFORMERS, Role.NEUTRAL
    )
    max_bad_fraction: float = option(
        0.1,
        "End the run when more than this share of a reader's last 1,000 images cannot be used.",
        DATA,
        Role.NEUTRAL,
    )

    def __post_init__(self):
        on_gpu = not self.use_cpu and torch.cuda.is_available()
        if self.tf32 is None and on_gpu:
            self.tf32 = torch.cuda.is_bf16_supported(including_emulation=False)  # the same devices, Ampere and later
        self._choose_precision(on_gpu)
        if self.gradient_accumulation_steps < 1:
            raise UserError(
                f"--gradient_accumulation_steps is {self.gradient_accumulation_steps}; it is a number of batches, at "
                "least 1."
            )
        # transformers checks what goes together by ValueError, and reads --deepspeed's file.
        with as_user_error("options of the Trainer", ValueError, OSError, KeyError, TypeError):
            with _launched_with(self.precision):  # TrainingArguments takes it over where --bf16 is false
                super().__post_init__()
        if on_gpu and self.tf32 is not None:
            switch_tf32(self.tf32)
        if self.logging_nan_inf_filter:
            raise UserError("--logging_nan_inf_filter must stay false: a loss that is not finite stops the run.")
        if not 0 <= self.max_bad_fraction < 1:
            raise UserError(f"--max_bad_fraction is {self.max_bad_fraction}; it must be in [0, 1).")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise UserError(f"--{name} is {value}; it is a whole number from 0 to 4,294,967,295.")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "dataloader_num_workers"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # also false for NaN
                raise UserError(f"--{name} is {value}; it must be 0 or more.")

    def _choose_precision(self, on_gpu: bool) -> None:
        """The option decides; where it is not given, the launcher; then the device."""
        launched = os.environ.get(LAUNCHED_PRECISION, "no")
        if launched not in ("no", "bf16", "fp16"):
            raise UserError(f"the launcher's --mixed_precision is {launched}; give no, bf16 or fp16.")
        if self.bf16 is None and launched == "fp16":
            self.fp16 = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and (launched == "bf16" or (on_gpu and torch.cuda.is_bf16_supported()))

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(str(self.output_dir))

    @property
    def precision(self) -> str:
        """What accelerate calls mixed_precision: bf16, fp16 or no."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "no"
