"""Contrast spaces: the predictions themselves, or quantities computed from them.

An epsilon prediction e and a velocity prediction v of the noisy latent n = a l + s e, with a = sqrt(abar_t) and
s = sqrt(1 - abar_t), determine each other:

    a v = e - s n        a l = n - s e        l = a n - s v

A cosine depends on directions alone, so the division by a is left out: a is near 0 at the last timesteps, and 0 with
zero terminal SNR. The predictions of a latent and its target are transformed alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Diffused

Transform = Callable[[Tensor], Tensor]
"""Predictions (B, M, 4, h, w) -> the same shape."""


class InSpace(NamedTuple):
    """The transformation of a batch's predictions, and its target."""

    transform: Transform
    target: Tensor
    """(B, 4, h, w), in the same space"""
    empty: Tensor | None = None
    """(B, 4, h, w), the predictions under the empty prompt; None if not computed"""


def contrast_space(name: str, denoiser: FrozenDenoiser, diffused: Diffused) -> InSpace:
    """The transformation of this batch's predictions. `residual` costs B UNet evaluations, without gradient."""
    return _SPACES[name](denoiser, diffused)


def _model(denoiser: FrozenDenoiser, diffused: Diffused) -> InSpace:
    return InSpace(lambda predictions: predictions, diffused.target)


def _velocity(denoiser: FrozenDenoiser, diffused: Diffused) -> InSpace:
    signal, sigma = denoiser.signal_and_noise_scales(diffused.timesteps)
    velocity = signal * diffused.noise - sigma * diffused.latents
    if denoiser.native_target == "velocity":
        return InSpace(lambda predictions: predictions, velocity)
    noisy = (sigma * diffused.noisy_latents)[:, None]
    return InSpace(lambda predictions: predictions - noisy, velocity)


def _sample(denoiser: FrozenDenoiser, diffused: Diffused) -> InSpace:
    scales = denoiser.signal_and_noise_scales(diffused.timesteps)
    signal, sigma = (scale[:, None] for scale in scales)  # (B, 1, 1, 1, 1)
    noisy = diffused.noisy_latents[:, None]
    if denoiser.native_target == "velocity":
        return InSpace(lambda predictions: signal * noisy - sigma * predictions, diffused.latents)
    return InSpace(lambda predictions: noisy - sigma * predictions, diffused.latents)


def _residual(denoiser: FrozenDenoiser, diffused: Diffused) -> InSpace:
    nothing = denoiser.empty_prompt.new_zeros(len(diffused.timesteps), denoiser.condition_width)
    with torch.no_grad():
        empty = denoiser.predict(diffused.noisy_latents, diffused.timesteps, nothing)
    return InSpace(lambda predictions: predictions - empty[:, None], diffused.target - empty, empty)


_SPACES = {"model": _model, "velocity": _velocity, "sample": _sample, "residual": _residual}
