"""Short runs, and batches without the detour over images."""

from pathlib import Path

import torch

from dcr_hf import DCRConfig, FrozenDenoiser
from dcr_hf.objectives import Batch, Diffused
from helpers.tiny_models import EMBEDDING_WIDTH


def diffused_at_random(denoiser: FrozenDenoiser, batch: int, seed: int = 0) -> Diffused:
    """Latents of 4 x 4, without the detour over images."""
    generator = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, batch, 4, 4, 4, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    noisy, target = (make(latents, noise, timesteps) for make in (denoiser.add_noise, denoiser.target))
    return Diffused(latents, noisy, timesteps, noise, target)


def batch_of_conditions(diffused: Diffused, conditions: torch.Tensor, view_conditions: torch.Tensor) -> Batch:
    """For objectives that do not look at embeddings: these are NaN."""
    embeddings = conditions.new_full((len(conditions), EMBEDDING_WIDTH["clip"]), float("nan"))
    return Batch(embeddings, embeddings, conditions, view_conditions, lambda: diffused)


def short_run(folder: Path, **options) -> DCRConfig:
    """Three steps of four images on the CPU that save nothing, but for what `options` say."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DCRConfig(**(defaults | options))


def options_of_a_run(folder: Path, **options) -> DCRConfig:
    """`short_run` for a recipe, whose stages set steps and learning rate themselves."""
    return short_run(folder, **({"max_steps": -1, "learning_rate": 5e-5} | options))
