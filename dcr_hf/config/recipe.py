"""Recipe: models, data, budget."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Recipe:
    """The models and data of a run, and the budget of each stage. Every field is a command-line option.

    A recipe file makes one of these and states only what differs from here.
    """

    encoder: str = field(metadata={"help": "CLIP or SigLIP to enhance: a folder or a hub id."})
    denoiser: str = field(
        default="Manojb/stable-diffusion-2-1-base",
        metadata={"help": "Stable Diffusion 1.x, 2.x or XL in diffusers' layout: a folder or a hub id."},
    )
    train_data: str = field(
        default="pixparse/cc3m-wds",
        metadata={
            "help": "Images to train on: a folder of webdataset shards or of images, one shard, a glob, a brace "
            "pattern such as 'cc3m/{00000..00331}.tar', or a hub id."
        },
    )
    stage: Literal["1", "2", "all", "end_to_end"] = field(
        default="all",
        metadata={
            "help": "1 trains the projector, 2 trains the encoder through it and exports, all does both. end_to_end "
            "trains both together from the start, for the steps of stage 2, and exports: not the paper's."
        },
    )
    stage1_max_steps: int = field(default=100_000, metadata={"help": "Optimizer steps of stage 1."})
    stage1_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of stage 1."})
    stage2_max_steps: int = field(default=4_600, metadata={"help": "Optimizer steps of stage 2."})
    stage2_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of stage 2."})
    stage1_objective: str | None = field(
        default=None,
        metadata={
            "help": "The objective of stage 1; by default that of --objective, as in the paper. reconstruction keeps "
            "the condition one that the denoiser knows."
        },
    )
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
