"""An objective's input, settings and output."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives.negatives import ALL_NEGATIVES, Negatives


@dataclass(frozen=True)
class Diffused:
    """A batch's inputs and targets for the denoiser; each tensor (B, 4, h, w) but timesteps (B,)."""

    latents: Tensor
    noisy_latents: Tensor
    timesteps: Tensor
    noise: Tensor
    target: Tensor

    @classmethod
    def draw(cls, denoiser: FrozenDenoiser, images: Tensor) -> "Diffused":
        """Latents l, timesteps t, noise e and target y for images (B, 3, H, W) in [0, 1]."""
        latents = denoiser.encode(images)
        timesteps = denoiser.draw_timesteps(len(images))
        noise = torch.randn_like(latents)
        return cls(
            latents=latents,
            noisy_latents=denoiser.add_noise(latents, noise, timesteps),
            timesteps=timesteps,
            noise=noise,
            target=denoiser.target(latents, noise, timesteps),
        )

    def first(self, count: int) -> "Diffused":
        """The first `count` images, or all."""
        return Diffused(*(getattr(self, field.name)[:count] for field in fields(self)))


@dataclass(frozen=True)
class Batch:
    """The trained model's outputs for images and their views.

    Attributes:
        embeddings, view_embeddings: z and z+ (B, D).
        conditions, view_conditions: c and c+ (B, C), or another form that the denoiser takes.
        originals: the original encoder's embeddings of the images (B, D), without gradient; None if not asked for.
        diffuse: draws the images' latents and noise, for objectives that evaluate the denoiser.
    """

    embeddings: Tensor
    view_embeddings: Tensor
    conditions: Tensor
    view_conditions: Tensor
    diffuse: Callable[[], Diffused]
    originals: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """The objectives' options. The defaults are the paper's.

    Attributes:
        temperature: of every contrast.
        negatives: of `dcr`.
        space: what `dcr` contrasts, see `spaces`.
        anchor_weight: of the reconstruction's error beside `dcr`.
        weight_negatives: `dcr` weighs negatives by the original encoder's similarity; see `negatives`.
        lambda_rec, lambda_con: the weights of the two losses of `joint`.
    """

    temperature: float = 0.1
    negatives: Negatives = ALL_NEGATIVES
    space: Literal["model", "velocity", "sample", "residual"] = "model"
    anchor_weight: float = 0.0
    weight_negatives: bool = False
    lambda_rec: float = 1.0
    lambda_con: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """An objective's output for a batch; all are scalars on the device.

    Attributes:
        loss: to train with.
        metrics: logged with the loss, without gradient.
        terms: the one or two losses that it consists of, unweighted, with gradient; two may be in conflict.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    terms: dict[str, Tensor]


Objective = Callable[[FrozenDenoiser, Batch, Settings], Outcome]
