"""What a LLaVA run will do: recipe and options resolved once into plans. Nothing else decides about its stages."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import DeepSpeedPlugin
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from dcr_hf.config.options import facts_of_stage
from dcr_hf.llava.config import LlavaRecipe, LlavaTraining
from dcr_hf.llava.model import TrainedLlava
from dcr_hf.training.checkpoints import newest_checkpoint

ALIGN, INSTRUCT = "align", "instruct"
_TRAINED = "trained"


@dataclass(frozen=True)
class LlavaStagePlan:
    """One training of a run.

    Attributes:
        name: of the stage, and of its folder in the run's.
        args: the stage's own: folder, budget, batch, learning rate.
        trains_language: the language model, or adapters of it, is trained beside the projector.
        projector_learning_rate: where it is not `args.learning_rate`.
        data, images: LLaVA's JSON, and the folder that its image paths start from.
        pads: images are padded to squares; else their centre is cut out, or they are squashed, as the tower's image
            processor does.
        captions: the JSON's records are captions of images.
        earlier: folders of results whose weights it starts from, where they are there.
        facts: what a resume compares: every option that changes the result of the stage, with the value that runs.
    """

    name: str
    args: LlavaTraining
    trains_language: bool
    projector_learning_rate: float | None
    data: str | None
    images: str | None
    captions: bool
    pads: bool
    earlier: tuple[Path, ...]
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.args.folder

    @property
    def result(self) -> Path:
        """The folder of the weights that it trained."""
        return self.folder / _TRAINED

    @property
    def finished(self) -> bool:
        return self.result.is_dir()

    @property
    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return newest_checkpoint(self.folder)

    def freeze(self, model: TrainedLlava) -> None:
        """Leave only what the stage trains unfrozen; new adapters are drawn from the run's seed."""
        if self.trains_language:
            model.train_language(self.args.lora_rank, self.args.lora_alpha or 0.0, self.args.lora_dropout)
        else:
            model.train_projector()


def plan_stages(recipe: LlavaRecipe, args: LlavaTraining) -> list[LlavaStagePlan]:
    """The stages that a run trains, in order.

    Args:
        args: the run's; `output_dir` is the run's folder.
    """
    makers = {ALIGN: _align, INSTRUCT: _instruct}
    return [makers[stage](recipe, args) for stage in recipe.stages]


def trained_results(plans: list[LlavaStagePlan]) -> list[Path]:
    """The folders, in order of training, whose weights replace those of the start in the finished LLaVA."""
    folders = dict.fromkeys([folder for plan in plans for folder in (*plan.earlier, plan.result)])
    return [folder for folder in folders if folder.is_dir()]


def _align(recipe: LlavaRecipe, args: LlavaTraining) -> LlavaStagePlan:
    own = _own_args(args, ALIGN, recipe.align_max_steps, recipe.align_learning_rate, recipe.align_batch_size)
    own.train_sampling_strategy = "random"  # captions are of about one length
    own.lora_rank, own.lora_alpha = 0, 0.0
    return LlavaStagePlan(
        ALIGN,
        own,
        trains_language=False,
        projector_learning_rate=None,
        data=recipe.align_data,
        images=recipe.align_images,
        captions=True,
        pads=recipe.align_pad,
        earlier=(),
        facts=_facts(recipe, own, without=INSTRUCT),
    )


def _instruct(recipe: LlavaRecipe, args: LlavaTraining) -> LlavaStagePlan:
    rate = recipe.instruct_learning_rate
    if rate is None:
        rate = 2e-4 if args.lora_rank else 2e-5
    own = _own_args(args, INSTRUCT, recipe.instruct_max_steps, rate, recipe.instruct_batch_size)
    return LlavaStagePlan(
        INSTRUCT,
        own,
        trains_language=True,
        projector_learning_rate=recipe.projector_learning_rate,
        data=recipe.instruct_data,
        images=recipe.instruct_images,
        captions=False,
        pads=True,
        earlier=(args.folder / ALIGN / _TRAINED,),
        facts=_facts(recipe, own, without=ALIGN),
    )


def _own_args(args: LlavaTraining, stage: str, steps: int, learning_rate: float, batch_size: int) -> LlavaTraining:
    own = copy.deepcopy(args)
    own.output_dir = str(args.folder / stage)
    own.max_steps, own.learning_rate, own.per_device_train_batch_size = steps, learning_rate, batch_size
    if own.deepspeed:  # its `auto` values were filled in from what the stage has now replaced
        own.hf_deepspeed_config = HfTrainerDeepSpeedConfig(own.deepspeed)
        own.hf_deepspeed_config.trainer_config_process(own)
        own.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=own.hf_deepspeed_config)
    return own


def _facts(recipe: LlavaRecipe, args: LlavaTraining, without: str) -> dict[str, Any]:
    """What changes the data or the arithmetic of a stage: not the other stage's options."""
    return {name: value for name, value in facts_of_stage(recipe, args).items() if not name.startswith(f"{without}_")}
