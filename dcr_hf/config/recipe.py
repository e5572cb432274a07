"""Recipe: models, data, budget."""

from dataclasses import MISSING, dataclass
from typing import Literal

from dcr_hf.config.base import RunControl
from dcr_hf.config.options import BUDGET, DATA, OBJECTIVE, Role, option
from dcr_hf.config.training import ObjectiveName
from dcr_hf.errors import UserError


@dataclass
class Recipe(RunControl):
    """The models and data of a run, and the budget of each stage. Every field is a command-line option.

    A recipe file makes one of these.
    """

    encoder: str = option(MISSING, "CLIP or SigLIP to enhance: a folder or a hub id.", DATA)
    denoiser: str = option(
        "Manojb/stable-diffusion-2-1-base",
        "Stable Diffusion 1.x, 2.x or XL in diffusers' layout: a folder or a hub id.",
        DATA,
    )
    train_data: str = option(
        "pixparse/cc3m-wds",
        "Images to train on: a folder of webdataset shards or of images, one shard, a glob, a brace pattern such "
        "as 'cc3m/{00000..00331}.tar', or a hub id.",
        DATA,
    )
    stage: Literal["1", "2", "all", "end_to_end"] = option(
        "all",
        "1 trains the projector. 2 trains the encoder through it, and exports. all does both. end_to_end trains "
        "both together for the steps of stage 2, and exports; it is not the paper's.",
        BUDGET,
        Role.STAGE,
    )
    stage1_max_steps: int = option(100_000, "Optimizer steps of stage 1.", BUDGET, Role.STAGE)
    stage1_learning_rate: float = option(1e-4, "Learning rate of stage 1.", BUDGET, Role.STAGE)
    stage2_max_steps: int = option(4_600, "Optimizer steps of stage 2.", BUDGET, Role.STAGE)
    stage2_learning_rate: float = option(1e-5, "Learning rate of stage 2.", BUDGET, Role.STAGE)
    stage1_objective: ObjectiveName | None = option(
        None,
        "Objective of stage 1. Default: --objective, as in the paper. reconstruction keeps the conditions within "
        "what the denoiser was trained on.",
        OBJECTIVE,
        Role.STAGE,
    )
    projector: str | None = option(
        None, "Folder of a trained projector for --stage 2. Default: stage 1's in --output_dir.", DATA
    )

    def __post_init__(self):
        for name in ("stage1_max_steps", "stage2_max_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it is a number of optimizer steps, at least 1.")
        for name in ("stage1_learning_rate", "stage2_learning_rate"):
            if not getattr(self, name) > 0:  # also true for NaN
                raise UserError(f"--{name} is {getattr(self, name)}; it must be above 0.")
