"""What a run will do: recipe and options resolved once into StagePlans. Nothing else decides about stages."""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.trainer_utils import IntervalStrategy

from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.config.options import facts_of_stage
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector, check_projector, find_projector
from dcr_hf.models.results import has_encoder
from dcr_hf.training.checkpoints import newest_checkpoint
from dcr_hf.training.stages import encoder_stage, end_to_end_stage, projector_stage

STAGE1, STAGE2, END_TO_END = "stage1", "stage2", "end_to_end"


@dataclass(frozen=True)
class StagePlan:
    """One training of a run.

    Attributes:
        name: of the stage, and of its folder in the run's.
        args: the stage's own: folder, budget, learning rate, objective.
        trains_projector, trains_encoder: what is trained; the other is frozen.
        projector: the folder of the trained projector that it starts from; None for a new one.
        facts: what a resume compares: every option that changes the result of the stage, with the value that runs.
    """

    name: str
    args: DCRConfig
    trains_projector: bool
    trains_encoder: bool
    projector: Path | None
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.args.folder

    @property
    def finished(self) -> bool:
        """True if the stage's result is in place. What is looked for here is written last."""
        return has_encoder(self.folder) if self.trains_encoder else find_projector(self.folder) is not None

    @property
    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return newest_checkpoint(self.folder)

    @property
    def trains(self) -> str:
        """What is trained, for people."""
        parts = {"projector": self.trains_projector, "encoder": self.trains_encoder}
        return " and ".join(f"the {part}" for part, trained in parts.items() if trained)

    def with_facts(self, more: dict[str, str]) -> "StagePlan":
        """The plan, with more that a resume compares."""
        return replace(self, facts=self.facts | more)

    def check_projector(self, embedding_width: int, condition_width: int, patch_width: int) -> None:
        """Raise UserError unless the projector that the stage starts from is there and fits.

        Args:
            embedding_width, patch_width: the encoder's.
            condition_width: the denoiser's.
        """
        if self.projector is not None:
            wanted = None if self.args.patch_ratio is None else patch_width
            check_projector(self.projector, embedding_width, condition_width, wanted)

    def build_model(self, encoder: ImageEncoder, condition_width: int, untrained: bool = False) -> ConditionModel:
        """The model with what is trained unfrozen.

        Args:
            encoder: as it was before training; becomes part of the model.
            condition_width: C, the denoiser's.
            untrained: with a new projector, whatever the stage starts from: to count what is trained.
        """
        if self.args.pixel_statistics == "openai":
            encoder.set_statistics(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        if self.trains_projector and self.trains_encoder:
            return end_to_end_stage(encoder, condition_width, self.args)
        if self.trains_projector or untrained or self.projector is None:
            model = projector_stage(encoder, condition_width, self.args.seed, self.args.patch_ratio)
            return model if self.trains_projector else encoder_stage(encoder, model.projector, self.args)
        wanted = None if self.args.patch_ratio is None else encoder.patch_width
        folder = check_projector(self.projector, encoder.embedding_width, condition_width, wanted)
        return encoder_stage(encoder, Projector.from_pretrained(folder), self.args)

    def summary(self) -> dict[str, Any]:
        """What run.json and the model card say of the stage."""
        return {
            "name": self.name,
            "trains": self.trains,
            "trains_encoder": self.trains_encoder,
            "steps": self.args.max_steps,
            "learning_rate": self.args.learning_rate,
            "projector_learning_rate": self.args.projector_learning_rate,
            "objective": self.args.objective,
        }


def plan_stages(recipe: Recipe, args: DCRConfig) -> list[StagePlan]:
    """The stages that a run trains, in order.

    Args:
        args: the run's; `output_dir` is the run's folder.
    """
    makers = {"1": [_stage1], "2": [_stage2], "all": [_stage1, _stage2], "end_to_end": [_end_to_end]}
    return [make(recipe, args) for make in makers[recipe.stage]]


def needs_projector(recipe: Recipe, args: DCRConfig) -> bool:
    """True if stage 2 needs a trained projector: where the denoiser is not used, an untrained one suffices."""
    used = args.asks_denoiser or args.log_gradient_conflict_every or args.preview_steps
    return bool(used) or recipe.projector is not None or recipe.stage == "all"


def _stage1(recipe: Recipe, args: DCRConfig) -> StagePlan:
    own = _own_args(args, STAGE1, recipe.stage1_max_steps, recipe.stage1_learning_rate)
    own.objective = recipe.stage1_objective or own.objective
    # The encoder, which would be evaluated and kept near the original, does not change in this stage.
    own.eval_strategy, own.eval_on_start, own.load_best_model_at_end = IntervalStrategy.NO, False, False
    own.keep_weight = 0.0
    if own.objective != "dcr":  # a contrast of embeddings has no gradient in the projector that could conflict
        own.log_gradient_conflict_every = 0
    return _plan(STAGE1, recipe, own, trains_projector=True, trains_encoder=False)


def _stage2(recipe: Recipe, args: DCRConfig) -> StagePlan:
    own = _own_args(args, STAGE2, recipe.stage2_max_steps, recipe.stage2_learning_rate)
    projector = None
    if needs_projector(recipe, args):
        projector = Path(recipe.projector) if recipe.projector else args.folder / STAGE1
    return _plan(STAGE2, recipe, own, trains_projector=False, trains_encoder=True, projector=projector)


def _end_to_end(recipe: Recipe, args: DCRConfig) -> StagePlan:
    """The encoder has the budget of stage 2, and the projector the learning rate of stage 1."""
    own = _own_args(args, END_TO_END, recipe.stage2_max_steps, recipe.stage2_learning_rate)
    if own.projector_learning_rate is None:
        own.projector_learning_rate = recipe.stage1_learning_rate
    return _plan(END_TO_END, recipe, own, trains_projector=True, trains_encoder=True)


def _own_args(args: DCRConfig, stage: str, steps: int, learning_rate: float) -> DCRConfig:
    own = copy.deepcopy(args)
    own.output_dir = str(args.folder / stage)
    own.max_steps, own.learning_rate = steps, learning_rate
    own.push_to_hub = False  # what is uploaded is the export, not a stage's checkpoints
    return own


def _plan(name: str, recipe: Recipe, args: DCRConfig, projector: Path | None = None, **trains: bool) -> StagePlan:
    return StagePlan(name=name, args=args, projector=projector, facts=facts_of_stage(recipe, args), **trains)


def options_of_run(recipe: Recipe, args: DCRConfig) -> dict[str, Any]:
    """Every option's value, for run.json."""
    return asdict(recipe) | args.to_dict()
