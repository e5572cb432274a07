"""DCRConfig: training options, the paper's as defaults."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from dcr_hf.config.base import TrainingOptions
from dcr_hf.config.checks import check_values
from dcr_hf.config.options import BUDGET, DATA, EVALUATION, OBJECTIVE, RELEASED, SPEED, TRANSFORMERS, Role, option

ObjectiveName = Literal["dcr", "reconstruction", "contrastive", "joint"]


@dataclass
class DCRConfig(TrainingOptions):
    """transformers' TrainingArguments with the paper's defaults, and DCR's own options.

    `max_steps` and `learning_rate` are set by the stage, from the recipe.
    """

    SET_BY_STAGE: ClassVar[dict[str, str]] = {
        "max_steps": "give --stage1_max_steps, --stage2_max_steps",
        "learning_rate": "give --stage1_learning_rate, --stage2_learning_rate",
        "num_train_epochs": "the data is an endless stream; give --stage1_max_steps, --stage2_max_steps",
    }

    per_device_train_batch_size: int = option(
        16,
        "B, images per device. B is part of the objective and not only a matter of speed: each image has B - 1 "
        "negatives, a step costs B * B + B UNet evaluations, and gradient accumulation does not replace it.",
        BUDGET,
    )
    gradient_accumulation_steps: int = option(
        2, "Batches whose gradients are averaged before an optimizer step.", BUDGET
    )
    weight_decay: float = option(0.01, "AdamW's weight decay.", BUDGET)
    lr_scheduler_type: str = option("constant", "Learning rate schedule, by transformers' name for it.", BUDGET)
    warmup_steps: float = option(0, "Steps of linear warm-up, for schedules that have one.", BUDGET)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.", BUDGET)
    dataloader_drop_last: bool = option(True, "Always true: the batch size is part of the objective.", TRANSFORMERS)
    objective: ObjectiveName = option(
        "dcr",
        "dcr: the paper's. reconstruction: mean squared error of the prediction under an image's own condition. "
        "contrastive: InfoNCE between the embeddings of images and views, for --stage 2. joint: the sum of "
        "reconstruction and contrastive, weighted by --lambda_rec and --lambda_con.",
        OBJECTIVE,
    )
    temperature: float = option(0.1, "Temperature of the contrast, in any objective.", OBJECTIVE)
    lambda_rec: float = option(1.0, "Weight of the reconstruction in --objective joint.", OBJECTIVE)
    lambda_con: float = option(1.0, "Weight of the contrast in --objective joint.", OBJECTIVE)
    anchor_weight: float = option(
        0.0,
        "Weight of the mean squared error of the prediction under an image's own condition, added to the loss of dcr: "
        "the contrast can then be won only by conditions that the denoiser understands. 0: off. Not the paper's.",
        OBJECTIVE,
    )
    negative_weighting: Literal["none", "similarity"] = option(
        "none",
        "How negatives count in dcr. none: all alike. similarity: the less, the more similar the original encoder "
        "finds the two images, since those may be of one category. Not the paper's.",
        OBJECTIVE,
    )
    contrast_space: Literal["model", "velocity", "sample", "residual"] = option(
        "model",
        "What dcr contrasts. model: the predictions. velocity, sample: the velocity or the clean sample that "
        "follows from them. residual: the predictions minus the one under the empty prompt, for B more UNet "
        "evaluations without gradient. Only model is the paper's objective.",
        OBJECTIVE,
    )
    condition: Literal["cls", "patches"] = option(
        "cls",
        "What the denoiser sees of an image. cls: c, made from the embedding. patches: c and tokens of a sample "
        "of the image's patches; every UNet evaluation then takes the plain path. Only cls is the paper's.",
        OBJECTIVE,
    )
    patch_keep_ratio: float = option(
        0.1,
        "Share of an image's patches whose tokens are in the condition, for --condition patches; sampled again "
        "for every image at every step. With too many, the denoiser can reconstruct the image without the "
        "embedding.",
        OBJECTIVE,
    )
    projector_learning_rate: float | None = option(
        None, "Learning rate of the projector in --stage end_to_end. Default: --stage1_learning_rate.", BUDGET
    )
    keep_weight: float = option(
        0.0,
        "Weight of the cosine distance to the original encoder's embedding of the same image, added to the loss "
        "of the encoder. It costs one more pass of the encoder without gradient and, where more than adapters is "
        "trained (--lora_bias, --lora_rank 0), a frozen copy of it. 0: off. Not the paper's.",
        OBJECTIVE,
    )
    log_gradient_conflict_every: int = option(
        0,
        "Every N steps, log the cosine between the gradients of reconstruction and contrast (for dcr, of its two "
        "positive terms), for all trained parameters and for each layer, with a plot at the end. Does not change "
        "training. 0: off.",
        EVALUATION,
        Role.NEUTRAL,
    )
    preview_steps: int = option(
        0,
        "Every N steps and at the end, draw what the denoiser predicts for four images under their own condition, "
        "their view's, another image's and the empty prompt; in the stage's folder preview/ and in TensorBoard. "
        "Does not change training. 0: off.",
        EVALUATION,
        Role.NEUTRAL,
    )
    noise_target: Literal["auto", "epsilon", "velocity"] = option(
        "auto",
        "The target y. auto: what the denoiser was trained to predict. The released code uses velocity whatever "
        "the denoiser is.",
        RELEASED,
    )
    view_flips: bool = option(
        False, "Flip the positive view at random, in both axes, as the released code does.", RELEASED
    )
    view_space: Literal["pixels", "normalized"] = option(
        "pixels",
        "Where the view is made. normalized: jitter the normalised values, as the released code does.",
        RELEASED,
    )
    pixel_statistics: Literal["encoder", "openai"] = option(
        "encoder",
        "Mean and standard deviation of the encoder's pixels: its own, or OpenAI's, which the released code takes for "
        "SigLIP too.",
        RELEASED,
    )
    mask_prompt_padding: bool = option(
        False, "Encode the empty prompt E with its padding masked, as the released code does.", RELEASED
    )
    decay_all: bool = option(
        False,
        "Weight decay on every trained parameter, as in the released code. Without it, biases and the weights of "
        "layer norms are spared, as in transformers.",
        RELEASED,
    )
    num_negatives: int | None = option(
        None,
        "Contrast each image with K others, sampled at every step, instead of all. A step then costs B * (K + 2) "
        "UNet evaluations. Not the paper's objective.",
        SPEED,
    )
    detach_negatives: bool = option(
        False,
        "No gradient through the predictions under other images' conditions: of the B * B + B evaluations only 2 "
        "* B have a backward pass. Not the paper's objective.",
        SPEED,
    )
    gather_conditions: bool = option(
        False,
        "Use the images of all W ranks' batches as negatives: B * (W * B + 1) UNet evaluations per rank. Not the "
        "paper's objective.",
        OBJECTIVE,
    )
    pair_chunk_size: str = option(
        "auto",
        "Pairs of latent and condition that pass the UNet at once; sets the peak memory. All chunks but the last "
        "are recomputed in the backward pass. 0: all pairs at once, nothing recomputed, the most memory. auto: "
        "measured once, so that as little as possible is recomputed in the memory that is free.",
        SPEED,
    )
    denoiser_dtype: Literal["auto", "bfloat16", "float16", "float32"] = option(
        "auto", "What the denoiser computes in. auto: bfloat16 on a GPU, float32 on a CPU.", SPEED
    )
    lora_rank: int = option(16, "Rank of the adapters of stage 2. 0: train the vision side itself.", BUDGET)
    lora_alpha: float = option(16, "Scale of the adapters: alpha / rank.", BUDGET)
    lora_dropout: float = option(0.1, "Dropout before the adapters.", BUDGET)
    lora_bias: Literal["lora_only", "none", "all"] = option(
        "lora_only",
        "Biases of the vision side that are trained beside the adapters: those of the layers with an adapter, none "
        "or all.",
        BUDGET,
    )
    shuffle_buffer: int = option(2000, "Encoded images that each reader holds in order to shuffle them.", DATA)
    eval_benchmarks: list[str] = option(
        [],
        "Benchmarks of recipes/evaluate.py to run every --eval_steps of stage 2 (default: --save_steps), such as "
        "mmvp_vlm clustering:cifar10; logged as eval_NAME, a name for --metric_for_best_model.",
        EVALUATION,
        Role.NEUTRAL,
    )
    eval_data_root: str | None = option(
        None, "Folder of the benchmarks' local copies. Default: from the hub.", EVALUATION, Role.NEUTRAL
    )

    def __post_init__(self):
        if self.eval_benchmarks and self.eval_strategy == "no":
            self.eval_strategy = "steps"
            if self.eval_steps is None and self.save_strategy == "steps":
                self.eval_steps = self.save_steps  # the default, --logging_steps, would be every few seconds
        super().__post_init__()
        self.pair_chunk_size = str(self.pair_chunk_size)
        check_values(self)

    @property
    def other_images(self) -> int:
        """How many negatives an image can have."""
        return self.per_device_train_batch_size * (self.world_size if self.gather_conditions else 1) - 1

    @property
    def patch_ratio(self) -> float | None:
        """The share of patches whose tokens are in the condition; None with --condition cls."""
        return self.patch_keep_ratio if self.condition == "patches" else None

    @property
    def asks_original(self) -> bool:
        """True if the loss needs the embeddings of the encoder as it was before training."""
        return bool(self.keep_weight) or self.negative_weighting != "none"

    @property
    def asks_denoiser(self) -> bool:
        """True if the objective evaluates the denoiser. Otherwise it gives the projector no gradient."""
        return self.objective != "contrastive" and not (self.objective == "joint" and self.lambda_rec == 0)

    @property
    def unet_evaluations(self) -> tuple[int, int]:
        """Evaluations per batch and device: forward and backward, and forward only."""
        batch = self.per_device_train_batch_size
        if not self.asks_denoiser:
            return 0, 0
        if self.objective != "dcr":
            return batch, min(batch, 4)  # objectives.baselines.LOGGED
        negatives = (self.num_negatives or self.other_images) * batch
        both, forward = (2 * batch, negatives) if self.detach_negatives else (2 * batch + negatives, 0)
        return both, forward + (batch if self.contrast_space == "residual" else 0)

    @property
    def pairs_at_once(self) -> int | Literal["auto"]:
        """`pair_chunk_size` as FrozenDenoiser takes it."""
        return "auto" if self.pair_chunk_size == "auto" else int(self.pair_chunk_size)

    @property
    def denoiser_torch_dtype(self) -> torch.dtype | None:
        return None if self.denoiser_dtype == "auto" else getattr(torch, self.denoiser_dtype)
