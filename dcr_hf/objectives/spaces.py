"""What the contrast is made on: the predictions themselves, or something that follows from them.

An epsilon prediction e and a velocity prediction v of the noisy latent n = a l + s e, with a = sqrt(abar_t) and
s = sqrt(1 - abar_t), say the same in other words:

    a v = e - s n        a l = n - s e        l = a n - s v

A contrast looks at directions only, so that nothing is divided by a, which is near 0 at the last timesteps, and is 0
with zero terminal SNR. Predictions of one latent and its target are all transformed alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.batch import Diffused

Transform = Callable[[Tensor], Tensor]
"""(B, M, 4, h, w) of predictions -> the same shape, each of the latent it belongs to."""


class InSpace(NamedTuple):
    transform: Transform
    target: Tensor
    """(B, 4, h, w), in the same space"""
    empty: Tensor | None = None
    """(B, 4, h, w), the predictions under the empty prompt, where they were made"""


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
    signal, sigma = (
        scale[:, None] for scale in denoiser.signal_and_noise_scales(diffused.timesteps)
    )  # (B, 1, 1, 1, 1)
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
