"""The trained side: CLIP families, the vision encoder, the projector, and ConditionModel that joins them.

Code that loads, holds, saves or merges these weights belongs here; the denoiser and training do not.
"""

from dcr_hf.models.condition import ConditionModel, Encoded
from dcr_hf.models.encoder import Features, ImageEncoder
from dcr_hf.models.families import FAMILIES, Family, check_encoder, read_encoder_config
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.projector import Projector, check_projector, find_projector
from dcr_hf.models.results import has_encoder, trained_base

__all__ = [
    "FAMILIES",
    "ConditionModel",
    "Encoded",
    "Family",
    "Features",
    "ImageEncoder",
    "Projector",
    "check_encoder",
    "check_projector",
    "find_projector",
    "has_encoder",
    "load_dual_encoder",
    "read_encoder_config",
    "trained_base",
]
