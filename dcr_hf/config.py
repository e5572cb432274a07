"""What a run is: `Recipe` says with what, `DCRConfig` says how. The defaults are the paper's."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments


@dataclass
class Recipe:
    """The models and data of a run, and the budget of each stage. Every field is a command-line option.

    A recipe file makes one of these and states only what differs from here.
    """

    encoder: str = field(metadata={"help": "CLIP or SigLIP to enhance: a folder or a hub id."})
    denoiser: str = field(
        default="Manojb/stable-diffusion-2-1-base",
        metadata={"help": "Stable Diffusion 1.x or 2.x in diffusers' layout: a folder or a hub id."},
    )
    train_data: str = field(
        default="pixparse/cc3m-wds",
        metadata={
            "help": "Images to train on: a folder of webdataset shards or of images, one shard, a glob, a brace "
            "pattern such as 'cc3m/{00000..00331}.tar', or a hub id."
        },
    )
    stage: Literal["1", "2", "all"] = field(
        default="all",
        metadata={"help": "1 trains the projector, 2 trains the encoder through it and exports, all does both."},
    )
    stage1_max_steps: int = field(default=100_000, metadata={"help": "Optimizer steps of stage 1."})
    stage1_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of stage 1."})
    stage2_max_steps: int = field(default=4_600, metadata={"help": "Optimizer steps of stage 2."})
    stage2_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of stage 2."})
    projector: str | None = field(
        default=None,
        metadata={"help": "Folder of a trained projector for stage 2; by default that of stage 1 in --output_dir."},
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Delete what an earlier run left of the same stages in --output_dir, and start over."},
    )
    resume_anyway: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint that was made with other options. The result is not exact."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Check everything, print what would run, and stop."})


@dataclass
class DCRConfig(TrainingArguments):
    """transformers' TrainingArguments with the paper's defaults, and DCR's own options.

    `max_steps` and `learning_rate` are set by the stage, from the recipe.
    """

    # The paper's training, in transformers' own fields.
    per_device_train_batch_size: int = field(
        default=16,
        metadata={
            "help": "B, images a device. It is part of the objective, not only a matter of speed: each image has "
            "B - 1 negatives and a step costs B * B + B UNet evaluations. Partial last batches are therefore dropped, "
            "and gradient accumulation does not replace it."
        },
    )
    gradient_accumulation_steps: int = field(
        default=2, metadata={"help": "Batches whose gradients are averaged before an optimizer step."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=10, metadata={"help": "Steps of linear warm-up."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    bf16: bool | None = field(
        default=None, metadata={"help": "Train the encoder and projector in bfloat16; by default where a GPU can."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, by transformers' name."})

    # What a run on streamed data wants.
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses from the log. They stop the run, so never."}
    )
    dataloader_num_workers: int = field(default=4, metadata={"help": "Processes that read and decode images."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Always true: see the batch size."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Always false: batches are our own."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - HfArgumentParser takes the second type
        default="tensorboard", metadata={"help": "Where to log: tensorboard, wandb, none, ... as in transformers."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter gets a gradient."}
    )

    # DCR.
    objective: str = field(
        default="dcr", metadata={"help": "Which predictions feed which loss: a name in objectives.OBJECTIVES."}
    )
    temperature: float = field(default=0.1, metadata={"help": "Temperature of the contrast."})
    noise_target: Literal["auto", "epsilon", "velocity"] = field(
        default="auto",
        metadata={
            "help": "The target y. auto: what the denoiser was trained to predict. The released code uses velocity "
            "whatever the denoiser is."
        },
    )
    view_flips: bool = field(
        default=False, metadata={"help": "Flip the positive view at random, in both axes, as the released code does."}
    )
    view_space: Literal["pixels", "normalized"] = field(
        default="pixels",
        metadata={"help": "Where the view is made. The released code jitters normalised values: normalized."},
    )
    pair_chunk_size: int = field(
        default=32,
        metadata={
            "help": "Pairs of latent and condition that go through the UNet at once; sets the peak memory. Each chunk "
            "is computed again in the backward pass. 0: all at once, nothing computed twice, the most memory."
        },
    )
    denoiser_dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="auto", metadata={"help": "What the denoiser computes in. auto: bfloat16 on a GPU, float32 on a CPU."}
    )
    lora_rank: int = field(
        default=16, metadata={"help": "Rank of the adapters of stage 2; 0 trains the vision side itself."}
    )
    lora_alpha: float = field(default=16, metadata={"help": "Scale of the adapters: alpha / rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the adapters."})
    shuffle_buffer: int = field(
        default=2000, metadata={"help": "Encoded images that each reader holds to shuffle them."}
    )
    max_bad_fraction: float = field(
        default=0.1,
        metadata={"help": "The run ends when more of a reader's last 1,000 images than this cannot be used."},
    )

    eval_benchmarks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Benchmarks of recipes/evaluate.py to run every --eval_steps of stage 2, such as mmvp_vlm "
            "clustering:cifar10; logged as eval_NAME, a name for --metric_for_best_model."
        },
    )
    eval_data_root: str | None = field(
        default=None, metadata={"help": "Folder of the benchmarks' local copies; by default they come from the hub."}
    )

    def __post_init__(self):
        if self.eval_benchmarks and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"--per_device_train_batch_size is {self.per_device_train_batch_size}: DCR contrasts the images of a "
                "batch, so it needs at least 2 on each device (the paper uses 16)."
            )
        if not self.dataloader_drop_last or self.remove_unused_columns or self.auto_find_batch_size:
            raise ValueError(
                "--dataloader_drop_last must stay true, and --remove_unused_columns and --auto_find_batch_size false: "
                "the batch size is part of DCR's objective, and its batches are not rows of columns."
            )
        if self.temperature <= 0:
            raise ValueError(f"--temperature is {self.temperature}; it must be above 0.")
        if self.lora_rank < 0:
            raise ValueError(f"--lora_rank is {self.lora_rank}; it must be above 0, or 0 for full fine-tuning.")
        if not 0 <= self.max_bad_fraction < 1:
            raise ValueError(f"--max_bad_fraction is {self.max_bad_fraction}; it must be in [0, 1).")
        for name in ("pair_chunk_size", "shuffle_buffer"):
            if getattr(self, name) < (name == "shuffle_buffer"):
                raise ValueError(f"--{name} is {getattr(self, name)}; it is a number of images or pairs.")

    @property
    def denoiser_torch_dtype(self) -> torch.dtype | None:
        return None if self.denoiser_dtype == "auto" else getattr(torch, self.denoiser_dtype)
