"""What each part of the miniature minimises, and its training by transformers' Trainer: interrupted, it resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import IntTensor, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPModel, CLIPTextModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from dcr_hf.miniature import models
from dcr_hf.miniature.models import Size

KL_WEIGHT = 1e-6
EMA_DECAY = 0.995
SAVE_STEPS = 200


class Batches(Dataset):
    """Full batches made at once from row numbers; `rows` may be more than there are images (each several times)."""

    def __init__(self, rows: int, make: Callable[[list[int]], dict[str, Tensor]]):
        self.rows, self.make = rows, make

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return self.make(rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.make([row])


class Contrast(nn.Module):
    """A CLIPModel with its own loss; pixels in [0, 1] are normalised as its processor does."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.tensor(models.MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(models.STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        pixels = (images - self.mean) / self.std
        return {"loss": self.clip(input_ids=input_ids, pixel_values=pixels, return_loss=True).loss}


class Autoencoding(nn.Module):
    """Squared error of the reconstruction, and a slight pull of the latents towards a normal distribution."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pixels = images * 2 - 1
        posterior = self.vae.encode(pixels).latent_dist
        error = F.mse_loss(self.vae.decode(posterior.sample()).sample, pixels)
        return {"loss": error + KL_WEIGHT * posterior.kl().mean()}


class Denoising(nn.Module):
    """UNet and text encoder, trained together on what the scheduler says is predicted; `averaged` is what is kept."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDPMScheduler):
        super().__init__()
        self.trained = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.averaged = torch.optim.swa_utils.AveragedModel(
            self.trained, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
        ).requires_grad_(False)
        self.scheduler = scheduler

    def forward(self, latents: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        noise = torch.randn_like(latents)
        steps = self.scheduler.config["num_train_timesteps"]
        timesteps = cast(IntTensor, torch.randint(steps, (len(latents),), device=latents.device))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        words = self.trained["text_encoder"](input_ids).last_hidden_state
        predicted = self.trained["unet"](noisy, timesteps, words).sample
        if self.scheduler.config["prediction_type"] == "epsilon":
            return {"loss": F.mse_loss(predicted, noise)}
        return {"loss": F.mse_loss(predicted, self.scheduler.get_velocity(latents, noise, timesteps))}


class Averaging(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs) -> None:
        model: Denoising = kwargs["model"]
        model.averaged.update_parameters(model.trained)


def _as_made(batch: Any) -> dict[str, Tensor]:
    """`Batches` has joined the rows already."""
    return batch


def fit(
    module: nn.Module,
    data: Batches,
    size: Size,
    part: str,
    folder: Path,
    seed: int,
    callbacks: list[TrainerCallback] | None = None,
) -> None:
    """Train `module` for the part's steps; a checkpoint that an interrupted call left in `folder` is gone on from."""
    steps = size.steps[part]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=size.batch[part],
        learning_rate=size.learning_rate[part],
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 10),
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=min(50, steps),
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        seed=seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
    )
    trainer = Trainer(
        module,
        arguments,
        train_dataset=data,
        data_collator=_as_made,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
