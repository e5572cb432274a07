"""What training LLaVA is: `LlavaRecipe` says with what, `LlavaTraining` says how. The defaults are LLaVA-1.5's."""

from dataclasses import dataclass, field
from typing import Literal

from dcr_hf.config.base import TrainingOptions


@dataclass
class LlavaRecipe:
    """The models and data of a run, and the budget of each stage. Every field is a command-line option."""

    llava: str | None = field(
        default=None, metadata={"help": "LlavaForConditionalGeneration to start from: a folder or a hub id."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Or: the vision tower to start from, a CLIP or SigLIP folder or hub id, and"}
    )
    language_model: str | None = field(
        default=None, metadata={"help": "the language model, a Vicuna or Llama folder or hub id."}
    )
    align_data: str | None = field(
        default=None, metadata={"help": "LLaVA's image-caption JSON, blip_laion_cc_sbu_558k.json."}
    )
    align_images: str | None = field(default=None, metadata={"help": "The folder that its image paths begin from."})
    instruct_data: str | None = field(
        default=None, metadata={"help": "LLaVA's mixture JSON, llava_v1_5_mix665k.json."}
    )
    instruct_images: str | None = field(default=None, metadata={"help": "The folder that its image paths begin from."})
    stage: Literal["align", "instruct", "all"] = field(
        default="all",
        metadata={
            "help": "align trains the projector on captions, instruct the projector and the language model on "
            "conversations; all does both."
        },
    )
    align_max_steps: int = field(default=-1, metadata={"help": "Optimizer steps of align. -1: --num_train_epochs."})
    instruct_max_steps: int = field(
        default=-1, metadata={"help": "Optimizer steps of instruct. -1: --num_train_epochs."}
    )
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Of the projector in align."})
    instruct_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the language model in instruct; by default 2e-5, and 2e-4 for the adapters of LoRA."},
    )
    projector_learning_rate: float = field(default=2e-5, metadata={"help": "Of the projector in instruct."})
    align_batch_size: int = field(default=32, metadata={"help": "Images a device in align; LLaVA: on 8 devices."})
    instruct_batch_size: int = field(
        default=16, metadata={"help": "Conversations a device in instruct; LLaVA: on 8 devices."}
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

    def __post_init__(self):
        for name in ("align_batch_size", "instruct_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it is a number of examples, at least 1.")
        for name in ("align_max_steps", "instruct_max_steps"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it is a number of steps, or -1 for all epochs.")

    @property
    def stages(self) -> list[str]:
        """The stages that are trained, in order."""
        return ["align", "instruct"] if self.stage == "all" else [self.stage]


@dataclass
class LlavaTraining(TrainingOptions):
    """transformers' TrainingArguments with LLaVA-1.5's defaults. `max_steps`, `learning_rate` and
    `per_device_train_batch_size` are set by the stage, from the recipe."""

    num_train_epochs: float = field(default=1, metadata={"help": "Passes over the data of each stage."})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps of linear warm-up; below 1 a share of all."})
    gradient_checkpointing: bool | None = field(
        default=True, metadata={"help": "Compute the layers again in the backward pass: slower, and much smaller."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Of instruct: group_by_length, batches of like lengths and of one modality, or random. Align, "
            "whose captions are all short, draws at random."
        },
    )
    model_max_length: int = field(
        default=2048, metadata={"help": "Tokens, those of the image among them; what is longer is cut off."}
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Train adapters of this rank in instruct, not the language model itself; LLaVA's are 128."},
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "Their scale, alpha / rank; by default 2."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})

    def __post_init__(self):
        self._refuse_what_the_stage_sets()
        super().__post_init__()
        if self.train_sampling_strategy not in ("group_by_length", "random"):
            raise ValueError(
                f"--train_sampling_strategy is {self.train_sampling_strategy}; here it is group_by_length or random."
            )
        if self.lora_rank < 0:
            raise ValueError(f"--lora_rank is {self.lora_rank}; it must be above 0, or 0 for the whole model.")
        if self.lora_alpha is None:
            self.lora_alpha = 2.0 * self.lora_rank
        elif not self.lora_rank:
            raise ValueError("--lora_alpha is for --lora_rank; without adapters it would change nothing.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout is {self.lora_dropout}; it must be in [0, 1).")
        if self.num_train_epochs <= 0:
            raise ValueError(f"--num_train_epochs is {self.num_train_epochs}; it must be above 0.")
        if self.push_to_hub:
            raise ValueError("--push_to_hub is not for this recipe: upload the folder llava when the run is finished.")
        if self.remove_unused_columns or self.auto_find_batch_size or self.eval_strategy != "no":
            raise ValueError(
                "--remove_unused_columns and --auto_find_batch_size must stay false and --eval_strategy no: batches "
                "are not rows of columns, and there is nothing to evaluate on the way."
            )

    def _refuse_what_the_stage_sets(self) -> None:
        for name, instead in _OF_THE_STAGE.items():
            if getattr(self, name) != LlavaTraining.__dataclass_fields__[name].default:
                raise ValueError(f"--{name} is set by the stage: give {instead}.")

    @property
    def lora_scale(self) -> float:
        """alpha / rank; 0 without adapters."""
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


_OF_THE_STAGE = {
    "learning_rate": "--align_learning_rate, --instruct_learning_rate",
    "max_steps": "--align_max_steps, --instruct_max_steps",
    "per_device_train_batch_size": "--align_batch_size, --instruct_batch_size",
}
