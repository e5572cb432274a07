"""DCRConfig: training options, the paper's as defaults."""

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from dcr_hf.config.base import TrainingOptions


@dataclass
class DCRConfig(TrainingOptions):
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
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Always true: see the batch size."})

    # DCR.
    objective: str = field(
        default="dcr",
        metadata={
            "help": "dcr: the paper's. reconstruction: mean squared error of the prediction under an image's own "
            "condition. contrastive: InfoNCE between embeddings of images and views, for --stage 2. joint: "
            "--lambda_rec times the one and --lambda_con times the other."
        },
    )
    temperature: float = field(default=0.1, metadata={"help": "Temperature of the contrast, of any objective."})
    lambda_rec: float = field(default=1.0, metadata={"help": "Weight of the reconstruction in --objective joint."})
    lambda_con: float = field(default=1.0, metadata={"help": "Weight of the contrast in --objective joint."})
    contrast_space: Literal["model", "velocity", "sample", "residual"] = field(
        default="model",
        metadata={
            "help": "What dcr contrasts. model: the predictions. velocity, sample: the velocity or the clean sample "
            "that follows from them. residual: the predictions less the one under the empty prompt, for B more UNet "
            "evaluations without gradient. All but model are not the paper's objective."
        },
    )
    condition: Literal["cls", "patches"] = field(
        default="cls",
        metadata={
            "help": "What the denoiser sees of an image. cls: c, made of the embedding. patches: c, and tokens of "
            "some of the image's patches beside it; every UNet evaluation is then a whole one. Not the paper's."
        },
    )
    patch_keep_ratio: float = field(
        default=0.1,
        metadata={
            "help": "Of an image's patches, the share whose tokens are in the condition, for --condition patches; "
            "chosen anew for every image at every step. Where the denoiser sees too many, it can reconstruct the "
            "image without the embedding."
        },
    )
    projector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the projector in --stage end_to_end; by default --stage1_learning_rate."},
    )
    keep_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the cosine distance to the original encoder's embedding of the same image, added to "
            "the loss of the encoder. It costs one more pass of the encoder without gradient, and with --lora_rank 0 "
            "a frozen copy of it. 0: none. Not the paper's."
        },
    )
    log_gradient_conflict_every: int = field(
        default=0,
        metadata={
            "help": "Every so many steps, log the cosine between the gradients of reconstruction and contrast (for "
            "dcr those of its two positive terms), of all trained parameters and of each layer; with a plot at the "
            "end. Changes nothing in training. 0: never."
        },
    )
    preview_steps: int = field(
        default=0,
        metadata={
            "help": "Every so many steps, and at the end, a picture in the stage's folder preview and in TensorBoard: "
            "what the denoiser makes of four images under their own condition, their view's, another image's and the "
            "empty one. Changes nothing in training. 0: never."
        },
    )
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
    num_negatives: int | None = field(
        default=None,
        metadata={
            "help": "Contrast each image with this many others, drawn anew at every step, instead of all. A step then "
            "costs B * (K + 2) UNet evaluations. Not the paper's objective."
        },
    )
    detach_negatives: bool = field(
        default=False,
        metadata={
            "help": "No gradient through the predictions under other images' conditions: of the B * B + B evaluations "
            "only 2 * B have a backward pass. Not the paper's objective."
        },
    )
    gather_conditions: bool = field(
        default=False,
        metadata={
            "help": "The images of all processes' batches are negatives too, W times as many: B * (W * B + 1) UNet "
            "evaluations a process. Not the paper's objective."
        },
    )
    pair_chunk_size: str = field(
        default="auto",
        metadata={
            "help": "Pairs of latent and condition that go through the UNet at once; sets the peak memory. All chunks "
            "but the last are computed again in the backward pass. 0: all at once, nothing computed twice, the most "
            "memory. auto: measured once, so that as little as possible is computed twice in the memory that is free."
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
        for name in ("lambda_rec", "lambda_con", "keep_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; a weight is 0 or more.")
        if self.lambda_rec == self.lambda_con == 0:
            raise ValueError("--lambda_rec and --lambda_con are both 0: --objective joint would train nothing.")
        if self.contrast_space != "model" and self.noise_target != "auto":
            raise ValueError(
                f"--contrast_space {self.contrast_space} takes the target from what the denoiser was trained to "
                f"predict; --noise_target {self.noise_target} would be without meaning. Leave one of them out."
            )
        if self.temperature <= 0:
            raise ValueError(f"--temperature is {self.temperature}; it must be above 0.")
        if not 0 < self.patch_keep_ratio <= 1:
            raise ValueError(
                f"--patch_keep_ratio is {self.patch_keep_ratio}; it is a share of the patches, above 0 and at most 1."
            )
        if self.lora_rank < 0:
            raise ValueError(f"--lora_rank is {self.lora_rank}; it must be above 0, or 0 for full fine-tuning.")
        if self.shuffle_buffer < 1:
            raise ValueError(f"--shuffle_buffer is {self.shuffle_buffer}; it is a number of images, at least 1.")
        self._read_pair_chunk_size()
        self._check_negatives()
        self._check_diagnoses()

    def _read_pair_chunk_size(self) -> None:
        if self.pair_chunk_size != "auto":
            if not str(self.pair_chunk_size).isdecimal():
                raise ValueError(
                    f"--pair_chunk_size is {self.pair_chunk_size}; it is a number of pairs, 0 for all at once, or "
                    "auto."
                )
            self.pair_chunk_size = int(self.pair_chunk_size)

    def _check_diagnoses(self) -> None:
        if self.preview_steps < 0:
            raise ValueError(f"--preview_steps is {self.preview_steps}; it is a number of steps, or 0.")
        if self.log_gradient_conflict_every < 0:
            raise ValueError(
                f"--log_gradient_conflict_every is {self.log_gradient_conflict_every}; it is a number of steps, or 0."
            )
        launched = {name for name in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{name}") == "true"}
        if self.log_gradient_conflict_every and (launched or self.deepspeed or self.fp16):
            raise ValueError(
                "--log_gradient_conflict_every needs each process to hold whole gradients at their true scale: one "
                "process or DDP, in bfloat16 or float32. Leave it out under DeepSpeed, FSDP and --fp16."
            )

    def _check_negatives(self) -> None:
        if self.gather_conditions and self.world_size == 1:
            raise ValueError(
                "--gather_conditions takes negatives from other processes, and there is only this one. Leave it out, "
                "or start more with accelerate launch."
            )
        others = self.other_images
        if self.num_negatives is not None and not 1 <= self.num_negatives <= others:
            raise ValueError(
                f"--num_negatives is {self.num_negatives}; each image has {others} others to be contrasted with: it "
                f"must be from 1 to {others}. Without it, all are taken."
            )

    @property
    def other_images(self) -> int:
        """How many negatives an image can have."""
        return self.per_device_train_batch_size * (self.world_size if self.gather_conditions else 1) - 1

    @property
    def patch_ratio(self) -> float | None:
        """The share of patches whose tokens are in the condition; None with --condition cls."""
        return self.patch_keep_ratio if self.condition == "patches" else None

    @property
    def asks_denoiser(self) -> bool:
        """Whether the objective does. Otherwise it gives the projector no gradient."""
        return self.objective != "contrastive" and not (self.objective == "joint" and self.lambda_rec == 0)

    @property
    def unet_evaluations(self) -> tuple[int, int]:
        """Of one batch on one device: forward and backward, and forward only."""
        batch = self.per_device_train_batch_size
        if not self.asks_denoiser:
            return 0, 0
        if self.objective != "dcr":
            return batch, batch
        negatives = (self.num_negatives or self.other_images) * batch
        both, forward = (2 * batch, negatives) if self.detach_negatives else (2 * batch + negatives, 0)
        return both, forward + (batch if self.contrast_space == "residual" else 0)

    @property
    def denoiser_torch_dtype(self) -> torch.dtype | None:
        return None if self.denoiser_dtype == "auto" else getattr(torch, self.denoiser_dtype)
