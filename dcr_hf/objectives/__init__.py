"""Objectives: which predictions of the denoiser feed which loss. One function each; OBJECTIVES names them.

To add an objective, write a function and add an entry; a loss of tensors alone belongs in `losses`.
"""

from dcr_hf.objectives.baselines import contrastive, joint, reconstruction
from dcr_hf.objectives.batch import Batch, Diffused, Objective, Outcome, Settings
from dcr_hf.objectives.negatives import Negatives
from dcr_hf.objectives.noise_contrast import dcr

OBJECTIVES: dict[str, Objective] = {
    "dcr": dcr,
    "reconstruction": reconstruction,
    "contrastive": contrastive,
    "joint": joint,
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Diffused",
    "Negatives",
    "Objective",
    "Outcome",
    "Settings",
    "contrastive",
    "dcr",
    "joint",
    "reconstruction",
]
