"""What every training here changes of transformers' TrainingArguments."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class TrainingOptions(TrainingArguments):
    """Defaults of DCR's and of LLaVA's training; TF32 and bfloat16 where a GPU can and nothing else was said."""

    bf16: bool | None = field(default=None, metadata={"help": "Train in bfloat16; by default where a GPU can."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, by transformers' name."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses from the log. They stop the run, so never."}
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "Processes that read and decode images."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always false: batches are our own."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - HfArgumentParser takes the second type
        default="tensorboard", metadata={"help": "Where to log: tensorboard, wandb, none, ... as in transformers."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter gets a gradient in every step."}
    )
    max_bad_fraction: float = field(
        default=0.1,
        metadata={"help": "The run ends when more of a reader's last 1,000 images than this cannot be used."},
    )

    def __post_init__(self):
        on_gpu = not self.use_cpu and torch.cuda.is_available()
        if self.tf32 is None and on_gpu:
            self.tf32 = torch.cuda.is_bf16_supported(including_emulation=False)  # the same devices, from Ampere on
        if self.bf16 is None:
            self.bf16 = on_gpu and torch.cuda.is_bf16_supported()
        super().__post_init__()
        if not 0 <= self.max_bad_fraction < 1:
            raise ValueError(f"--max_bad_fraction is {self.max_bad_fraction}; it must be in [0, 1).")
