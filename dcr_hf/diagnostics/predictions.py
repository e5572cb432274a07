"""Gram matrices of embeddings and of the predictions under their conditions, over the same images."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.errors import UserError
from dcr_hf.evaluation.embedding.embed import pixel_batches
from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.models.projector import Projector


def choose_images(labels: np.ndarray, classes: int, images_per_class: int) -> np.ndarray:
    """Row numbers of at most `images_per_class` images of at most `classes` classes; the same at every call.

    Raises:
        UserError: fewer than two classes, or no class with two images.
    """
    generator = np.random.default_rng(0)
    present = np.unique(labels)
    chosen = np.sort(generator.permutation(present)[:classes])
    rows = [generator.permutation(np.flatnonzero(labels == label))[:images_per_class] for label in chosen]
    if len(rows) < 2 or max(map(len, rows)) < 2:
        raise UserError(
            f"{len(rows)} classes of at most {max(map(len, rows))} images: scatter within and between classes needs "
            "two classes, and two images of one of them."
        )
    return np.sort(np.concatenate(rows))


def embed(
    encoder: PretrainedEncoder, data: LabeledImages, rows: np.ndarray, batch_size: int, workers: int
) -> tuple[Tensor, Tensor]:
    """z (N, D) on the encoder's device, and the pixels (N, 3, S, S) uint8, of the images `rows` of a data set."""
    embeddings, pixels = [], []
    with tqdm(total=len(rows), desc=f"embedding {data.name}", unit=" images") as bar:
        for batch in pixel_batches(data.images, encoder.preprocess, rows.tolist(), batch_size, workers):
            embeddings.append(torch.from_numpy(encoder.embed_images(batch)["projected"]))
            pixels.append(batch)
            bar.update(len(batch))
    return torch.cat(embeddings).to(encoder.device), torch.cat(pixels)


@torch.no_grad()
def conditions_of(projector: Projector, embeddings: Tensor) -> Tensor:
    """The conditions c (N, C) of embeddings."""
    return projector.eval()(embeddings)


def embedding_gram(embeddings: Tensor) -> np.ndarray:
    """The Gram matrix (N, N) of z (N, D) at unit length, as D-Ability is measured."""
    return _gram(F.normalize(embeddings.cpu().double(), dim=-1))


@torch.no_grad()
def prediction_gram(
    denoiser: FrozenDenoiser, conditions: Tensor, pixels: Tensor, probes: int, seed: int, batch_size: int
) -> np.ndarray:
    """The Gram matrix (N, N) of the predictions under conditions (N, C), at unit length, averaged over probes.

    A probe is a noisy latent: one of the images, its timestep and noise, drawn by the seed. It is the same for all
    conditions, so that predictions differ by these alone.

    Args:
        pixels: (N, 3, S, S), uint8, to draw probes from.
        probes: how many; their timesteps are spread over the schedule.
    """
    total = np.zeros((len(conditions), len(conditions)))
    noisy_latents, timesteps = _probes(denoiser, pixels, probes, seed)
    with tqdm(total=probes * len(conditions), desc=f"seed {seed}", unit=" predictions") as bar:
        for noisy, timestep in zip(noisy_latents.split(1), timesteps.split(1), strict=True):
            parts = []
            for some in conditions.split(batch_size):
                parts.append(denoiser.predict_pairs(noisy, timestep, some)[0].flatten(1))  # (n, 4 * h * w)
                bar.update(len(some))
            total += _gram(F.normalize(torch.cat(parts).cpu().double(), dim=-1)) / probes
    return total


def _probes(denoiser: FrozenDenoiser, pixels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy latents (K, 4, h, w) and their timesteps (K,)."""
    levels = denoiser.get_buffer("alphas_cumprod")  # (T,)
    device, steps = levels.device, len(levels)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        chosen = torch.randint(len(pixels), (count,))
        spread = (torch.arange(count) + torch.rand(count)) / count
        timesteps = (spread * steps).long().clamp(max=steps - 1).to(device)
        latents = denoiser.encode(pixels[chosen].to(device) / 255)
        return denoiser.add_noise(latents, torch.randn_like(latents), timesteps), timesteps


def _gram(points: Tensor) -> np.ndarray:
    """The Gram matrix about the points' mean: predictions of one latent are so close that their distances would
    be lost in rounding."""
    centred = points - points.mean(dim=0)
    return (centred @ centred.T).numpy()
