"""What the denoiser sees: the clean images that it predicts for four fixed images under different conditions."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from dcr_hf.data.augment import PositiveView
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.plotting import STYLE

COUNT = 4
CONDITIONS = ("own condition", "its view's", "another image's", "empty prompt")


class Preview:
    """Draws the same images, noise and views at every call; the RNG state is unchanged.

    The images are the first of this process's first batch; they stay in the folder, so that a resumed run shows
    the same ones.

    Args:
        folder: where pictures and images go.
        every: optimizer steps between two pictures.
        writes: whether this process does; all must call, since a strategy may have divided the model over them.
    """

    def __init__(
        self, folder: Path, every: int, denoiser: FrozenDenoiser, view: PositiveView, seed: int, writes: bool
    ):
        self.folder, self.every, self.seed, self.writes = folder, every, seed, writes
        self.denoiser, self.view = denoiser, view
        self._images: Tensor | None = None
        self._last = -1

    def is_due(self, finished_steps: int) -> bool:
        """Due once per `every` optimizer steps, however many batches they have."""
        return finished_steps % self.every == 0 and finished_steps != self._last

    def show(self, images: Tensor) -> None:
        """Choose the images to show from (B, 3, H, W) in [0, 1], at the first call."""
        if self._images is not None:
            return
        files = [self.folder / f"image-{number}.png" for number in range(min(COUNT, len(images)))]
        if self.writes and all(file.is_file() for file in files):
            pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2)
            self._images = pixels.to(images.device) / 255
            return
        self._images = images[:COUNT].clone()
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, image in zip(files, _pixels(self._images), strict=True):
                Image.fromarray(image).save(file)

    @property
    def images(self) -> Tensor:
        """The images that are shown; `show` comes first."""
        assert self._images is not None
        return self._images

    def draw(self, model: nn.Module, step: int, writer: SummaryWriter | None = None) -> None:
        """Draw the model after `step` steps: step-NUMBER.png, and an image in TensorBoard."""
        self._last = step
        training = model.training
        device = self.images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(self.seed)
            rows, errors = self._predict(model.eval())
        model.train(training)
        if self.writes:
            figure = draw_preview(rows, errors, step)
            figure.savefig(self.folder / f"step-{step:07d}.png", dpi=110, bbox_inches="tight")
            if writer is not None:
                writer.add_figure("preview", figure, step)

    def _predict(self, model: nn.Module) -> tuple[dict[str, np.ndarray], Tensor]:
        """Images (K, H, W, 3) by column, and the noise MSE (K, 4) under each of `CONDITIONS`."""
        views = self.view(self.images)
        denoiser = self.denoiser
        encoded = model(torch.cat([self.images, views]), originals=0)
        table = denoiser.with_tokens(encoded.conditions, encoded.tokens)  # (2 K, ...), the images' and the views'
        latents = denoiser.encode(self.images)
        # Half-way: the outline is still visible, what the image showed is not.
        steps = torch.full((len(latents),), denoiser.timestep_count // 2, device=latents.device)
        noise = torch.randn_like(latents)
        noisy = denoiser.add_noise(latents, noise, steps)
        rows = torch.arange(len(latents), device=latents.device)
        chosen = torch.stack([rows, rows + len(rows), rows.roll(1)], dim=1)  # (K, 3)
        # Separately: the other conditions may have tokens of their own, the empty prompt has none.
        nothing = latents.new_zeros(len(rows), denoiser.condition_width)
        empty = denoiser.predict(noisy, steps, nothing)[:, None]
        predicted = torch.cat([denoiser.predict_chosen(noisy, steps, table, chosen), empty], dim=1)  # (K, 4, 4, h, w)
        columns = {"image": self.images, "view": views, "noisy": denoiser.decode(noisy)}
        errors = []
        for name, of_condition in zip(CONDITIONS, predicted.unbind(dim=1), strict=True):
            found = denoiser.as_noise(of_condition, noisy, steps)
            errors.append((found - noise).square().mean(dim=(1, 2, 3)))
            columns[name] = denoiser.decode(denoiser.clean(found, noisy, steps))
        return {name: _pixels(images) for name, images in columns.items()}, torch.stack(errors, dim=1).cpu()


class LastPreview(TrainerCallback):
    """Draws after the last step; when training has ended, TensorBoard's file is closed."""

    def __init__(self, draw: Callable[[], None]):
        self._draw = draw

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self._draw()


def _pixels(images: Tensor) -> np.ndarray:
    """(K, 3, H, W) in [0, 1] -> (K, H, W, 3) uint8"""
    return (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_preview(columns: dict[str, np.ndarray], errors: Tensor, step: int) -> Figure:
    """A row an image; under each prediction the mean squared error of its noise, the best of a row in bold."""
    count = len(errors)
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        figure = Figure(figsize=(1.9 * len(columns), 2.15 * count + 0.5), layout="constrained")
        grid = figure.subplots(count, len(columns), squeeze=False)
        for across, (name, images) in enumerate(columns.items()):
            grid[0, across].set_title(name, fontsize=10)
            for axes, image in zip(grid[:, across], images, strict=True):
                axes.imshow(image)
                axes.set(xticks=[], yticks=[])
        for row, of_image in zip(grid, errors.tolist(), strict=True):
            for axes, error in zip(row[-len(CONDITIONS) :], of_image, strict=True):
                axes.set_xlabel(f"noise MSE {error:.3f}", weight="bold" if error == min(of_image) else "normal")
        figure.suptitle(f"clean images predicted from the noisy ones, after {step:,} steps", fontsize=11)
    return figure
