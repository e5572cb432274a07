"""What is looked at: the scenes, and what the denoiser makes of a condition."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.miniature.captions import full_caption
from dcr_hf.miniature.drawing import render
from dcr_hf.miniature.scenes import Scene
from dcr_hf.plotting import data_uri

TIMESTEP = 600  # most of the image is gone: what comes back comes from the condition


def scene_sheet(scenes: Sequence[Scene], size: int, columns: int = 6) -> str:
    """Scenes under their captions, as a data URI."""
    rows = -(-len(scenes) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.75 * rows), layout="constrained")
    for axes, scene in zip(figure.subplots(rows, columns).flat, scenes, strict=True):
        _show(axes, np.asarray(render(scene, size)))
        axes.set_title(textwrap.fill(full_caption(scene).removeprefix("a photo of "), 26), fontsize=7)
    return _uri(figure)


def sample_sheet(folder: Path, scenes: Sequence[Scene], size: int, path: Path, steps: int = 50, seed: int = 0) -> None:
    """What the Stable Diffusion in `folder` draws from the scenes' full captions, below the scenes, as a PNG file."""
    from diffusers import StableDiffusionPipeline  # its import prints lines about torchvision

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(desc=f"sampling {folder.name}")
    captions = [full_caption(scene) for scene in scenes]
    generator = torch.Generator().manual_seed(seed)
    sampled = pipeline(captions, num_inference_steps=steps, guidance_scale=2.0, generator=generator, output_type="np")
    figure = Figure(figsize=(1.75 * len(scenes), 4.6), layout="constrained")
    for pair, scene, caption, image in zip(
        figure.subplots(2, len(scenes)).T, scenes, captions, sampled.images, strict=True
    ):
        _show(pair[0], np.asarray(render(scene, size)))
        pair[0].set_title(textwrap.fill(caption.removeprefix("a photo of "), 26), fontsize=7)
        _show(pair[1], image)
    figure.savefig(path, format="png", dpi=110)


@torch.no_grad()
def clean_images(
    denoiser: FrozenDenoiser, images: Tensor, conditions: dict[str, Tensor], timestep: int = TIMESTEP, seed: int = 0
) -> dict[str, Tensor]:
    """The clean image that one prediction of the denoiser stands for, under each kind of condition.

    Args:
        images: (B, 3, H, W) in [0, 1].
        conditions: (B, C) by name.

    Returns:
        (B, 3, H, W) in [0, 1] by name, `noisy` first: the same noise for all.
    """
    torch.manual_seed(seed)
    latents = denoiser.encode(images)
    timesteps = torch.full((len(images),), timestep)
    noise = torch.randn_like(latents)
    noisy = denoiser.add_noise(latents, noise, timesteps)
    found = {"noisy": denoiser.decode(noisy)}
    for name, condition in conditions.items():
        predicted = denoiser.as_noise(denoiser.predict(noisy, timesteps, condition), noisy, timesteps)
        found[name] = denoiser.decode(denoiser.clean(predicted, noisy, timesteps))
    return {name: decoded.clamp(0, 1) for name, decoded in found.items()}


def picture_table(columns: dict[str, Tensor]) -> str:
    """Images (B, 3, H, W) by title, a row an image, as a data URI."""
    count = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.75 * len(columns), 1.75 * count + 0.5), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        grid[0, column].set_title(title, fontsize=9)
        for row, image in enumerate(images):
            _show(grid[row, column], image.permute(1, 2, 0).numpy())
    return _uri(figure)


def _show(axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_uri(buffer.getvalue(), "png")
