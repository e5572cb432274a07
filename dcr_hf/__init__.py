"""Diffusion Contrastive Reconstruction (DCR) for CLIP vision encoders, on Hugging Face Trainer."""

from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.export import export_encoder
from dcr_hf.objectives.losses import dcr_loss
from dcr_hf.training.trainer import DCRTrainer

__all__ = ["DCRConfig", "DCRTrainer", "FrozenDenoiser", "Recipe", "dcr_loss", "export_encoder"]
