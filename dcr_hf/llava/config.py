"""LlavaRecipe: models, data, budget. LlavaTraining: training options. The defaults are LLaVA-1.5's."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dcr_hf.config.base import RunControl, TrainingOptions
from dcr_hf.config.options import BUDGET, DATA, SPEED, Role, option
from dcr_hf.errors import UserError

_UPLOAD = "upload the folder llava when the run is finished"
_MEASURE = "nothing is evaluated during training; recipes/evaluate_mllm.py measures the result"


@dataclass
class LlavaRecipe(RunControl):
    """The models and data of a run, and the budget of each stage. Every field is a command-line option."""

    llava: str | None = option(
        None, "LlavaForConditionalGeneration to start from, instead of its two parts: a folder or a hub id.", DATA
    )
    encoder: str | None = option(
        None, "Vision tower to start from, with --language_model: a CLIP or SigLIP folder or hub id.", DATA
    )
    language_model: str | None = option(
        None, "Language model to start from, with --encoder: a Vicuna or Llama folder or hub id.", DATA
    )
    align_data: str | None = option(None, "LLaVA's image-caption JSON, blip_laion_cc_sbu_558k.json.", DATA)
    align_images: str | None = option(None, "Folder that the image paths of --align_data start from.", DATA)
    instruct_data: str | None = option(None, "LLaVA's mixture JSON, llava_v1_5_mix665k.json.", DATA)
    instruct_images: str | None = option(None, "Folder that the image paths of --instruct_data start from.", DATA)
    stage: Literal["align", "instruct", "all"] = option(
        "all",
        "align trains the projector on captions, instruct the projector and the language model on conversations; all "
        "does both.",
        BUDGET,
        Role.STAGE,
    )
    align_max_steps: int = option(-1, "Optimizer steps of align. -1: --num_train_epochs.", BUDGET, Role.STAGE)
    instruct_max_steps: int = option(-1, "Optimizer steps of instruct. -1: --num_train_epochs.", BUDGET, Role.STAGE)
    align_learning_rate: float = option(1e-3, "Learning rate of the projector in align.", BUDGET, Role.STAGE)
    instruct_learning_rate: float | None = option(
        None,
        "Learning rate of the language model in instruct. Default: 2e-5, and 2e-4 for the adapters of LoRA.",
        BUDGET,
        Role.STAGE,
    )
    projector_learning_rate: float = option(2e-5, "Learning rate of the projector in instruct.", BUDGET)
    align_batch_size: int = option(32, "Images per device in align; LLaVA uses 8 devices.", BUDGET, Role.STAGE)
    instruct_batch_size: int = option(
        16, "Conversations per device in instruct; LLaVA uses 8 devices.", BUDGET, Role.STAGE
    )

    align_pad: bool = option(
        False,
        "Pad the images of align to squares, as those of instruct are; LLaVA's script cuts their centre out.",
        DATA,
    )

    def __post_init__(self):
        for name in ("align_batch_size", "instruct_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it is a number of examples, at least 1.")
        for name in ("align_max_steps", "instruct_max_steps"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise UserError(f"--{name} is {getattr(self, name)}; it is a number of steps, or -1 for all epochs.")

    @property
    def stages(self) -> list[str]:
        """The stages that are trained, in order."""
        return ["align", "instruct"] if self.stage == "all" else [self.stage]


@dataclass
class LlavaTraining(TrainingOptions):
    """transformers' TrainingArguments with LLaVA-1.5's defaults. `max_steps`, `learning_rate` and
    `per_device_train_batch_size` are set by the stage, from the recipe."""

    SET_BY_STAGE: ClassVar[dict[str, str]] = {
        "learning_rate": "give --align_learning_rate, --instruct_learning_rate",
        "max_steps": "give --align_max_steps, --instruct_max_steps",
        "per_device_train_batch_size": "give --align_batch_size, --instruct_batch_size",
        **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id", "hub_private_repo"), _UPLOAD),
        **dict.fromkeys(("eval_strategy", "eval_on_start"), _MEASURE),
    }

    num_train_epochs: float = option(1, "Passes over the data of each stage.", BUDGET)
    weight_decay: float = option(0.0, "AdamW's weight decay.", BUDGET)
    lr_scheduler_type: str = option("cosine", "Learning rate schedule, by transformers' name for it.", BUDGET)
    warmup_steps: float = option(0.03, "Steps of linear warm-up; below 1, a share of all.", BUDGET)
    gradient_checkpointing: bool | None = option(
        True, "Recompute the layers in the backward pass: slower, and much smaller.", SPEED, Role.NEUTRAL
    )
    train_sampling_strategy: str = option(
        "group_by_length",
        "Order of instruct's data. group_by_length: batches of similar lengths and of one modality. random: at "
        "random, as align always is, whose captions are short.",
        DATA,
    )
    model_max_length: int = option(
        2048, "Tokens of an example, those of the image included; what is longer is truncated.", DATA
    )
    lora_rank: int = option(
        0, "Train adapters of this rank in instruct, instead of the language model itself; LLaVA uses 128.", BUDGET
    )
    lora_alpha: float | None = option(None, "Scale of the adapters, alpha / rank. Default: 2.", BUDGET)
    lora_dropout: float = option(0.05, "Dropout before the adapters.", BUDGET)

    def __post_init__(self):
        super().__post_init__()
        if self.train_sampling_strategy not in ("group_by_length", "random"):
            raise UserError(
                f"--train_sampling_strategy is {self.train_sampling_strategy}; here it is group_by_length or random."
            )
        if self.lora_rank < 0:
            raise UserError(f"--lora_rank is {self.lora_rank}; it must be above 0, or 0 for the model itself.")
        if self.lora_alpha is None:
            self.lora_alpha = 2.0 * self.lora_rank
        elif not self.lora_rank:
            raise UserError("--lora_alpha is for --lora_rank; without adapters it would change nothing.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout is {self.lora_dropout}; it must be in [0, 1).")
        if self.num_train_epochs <= 0:
            raise UserError(f"--num_train_epochs is {self.num_train_epochs}; it must be above 0.")
        if self.remove_unused_columns:
            raise UserError("--remove_unused_columns must stay false: batches are not rows of columns.")

    @property
    def lora_scale(self) -> float:
        """alpha / rank; 0 without adapters."""
        return (self.lora_alpha or 0.0) / self.lora_rank if self.lora_rank else 0.0
