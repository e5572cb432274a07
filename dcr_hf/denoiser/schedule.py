"""What a timestep means: how much noise, and what the denoiser was trained to predict of it."""

from typing import Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dcr_hf.denoiser.pipeline import native_target

NoiseTarget = Literal["auto", "epsilon", "velocity"]


class NoiseSchedule(nn.Module):
    """Latents l, noise e and timesteps t <-> noisy latents n and targets y, by a scheduler's cumulative alphas.

    Attributes:
        scheduler: gives the noise levels, their number and the prediction type.
        native_target: "epsilon" or "velocity", what the denoiser predicts.
        noise_target: "epsilon" or "velocity", what y is.
    """

    alphas_cumprod: Tensor

    def __init__(self, scheduler: DDPMScheduler, noise_target: NoiseTarget = "auto"):
        super().__init__()
        self.scheduler = scheduler
        self.native_target = native_target("denoiser", scheduler.config)
        self.noise_target = self.native_target if noise_target == "auto" else noise_target
        # float32 on the device once: DDPMScheduler keeps them on the CPU and would copy them at every step.
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float().clone(), persistent=False)

    @property
    def timestep_count(self) -> int:
        """How many timesteps the scheduler has: 1,000 in every Stable Diffusion."""
        return self.alphas_cumprod.shape[0]

    def draw_timesteps(self, batch: int) -> Tensor:
        """One random timestep t an image, (B,)."""
        return torch.randint(self.timestep_count, (batch,), device=self.alphas_cumprod.device)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """n = sqrt(abar_t) l + sqrt(1 - abar_t) e, all (B, 4, h, w); timesteps (B,)."""
        signal, sigma = self.signal_and_noise_scales(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """y (B, 4, h, w): the noise e, or the velocity sqrt(abar_t) e - sqrt(1 - abar_t) l."""
        if self.noise_target == "epsilon":
            return noise
        signal, sigma = self.signal_and_noise_scales(timesteps)
        return signal * noise - sigma * latents

    def as_noise(self, predictions: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that predictions (B, 4, h, w) of this denoiser stand for, whatever it was trained to predict."""
        if self.native_target == "epsilon":
            return predictions
        signal, sigma = self.signal_and_noise_scales(timesteps)
        return signal * predictions + sigma * noisy_latents

    def clean(self, noise: Tensor, noisy_latents: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents l (B, 4, h, w) that noisy ones have if this is their noise; without end where no signal
        is left."""
        signal, sigma = self.signal_and_noise_scales(timesteps)
        return (noisy_latents - sigma * noise) / signal

    def signal_and_noise_scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), each (B, 1, 1, 1)."""
        alpha_bar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
