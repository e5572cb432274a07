"""The frozen Stable Diffusion: images -> latents, noise and target; predictions for pairs of latent and condition.

Code that makes those predictions belongs here. It holds no trainable weight and knows no loss.
"""

from dcr_hf.denoiser.frozen import FrozenDenoiser, NoiseTarget, PairChunkSize
from dcr_hf.denoiser.pipeline import check_denoiser

__all__ = ["FrozenDenoiser", "NoiseTarget", "PairChunkSize", "check_denoiser"]
