"""DCRTrainer: Hugging Face's Trainer with DCR's loss, what is worth knowing beside it, and small checkpoints."""

import json
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed

from dcr_hf.augment import PositiveView
from dcr_hf.condition import ConditionModel
from dcr_hf.config import DCRConfig
from dcr_hf.data import TrainingImages, collate
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.objectives import OBJECTIVES, Diffused, Negatives


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; nothing was saved since."""


class DCRTrainer(Trainer):
    """Trains what requires a gradient in a `ConditionModel`, through a frozen denoiser.

    Args:
        model: encoder and projector; freeze what is not to be trained (see `stages`).
        args: a `DCRConfig`.
        denoiser: moved to the training device. It is an attribute of the trainer and not part of the model, so that
            checkpoints, DDP and ZeRO do not see it.
        train_dataset: a `TrainingImages`, already this rank's share, or any data set of {"image": (3, H, W) uint8,
            "key": str, "skipped": []}.
        kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(self, model: ConditionModel, args: DCRConfig, denoiser: FrozenDenoiser, **kwargs):
        super().__init__(model=model, args=args, data_collator=collate, **kwargs)
        # compute_loss returns a mean over the batch: the Trainer then averages over accumulated batches, not sums.
        self.model_accepts_loss_kwargs = False
        self.denoiser = denoiser.to(args.device)
        self.denoiser.plan_anew()
        if args.torch_compile:
            self.denoiser.compile_unet(args.torch_compile_backend, args.torch_compile_mode)
        self.negatives = Negatives(args.num_negatives, args.detach_negatives, args.gather_conditions)
        self.view = PositiveView(
            model.encoder.image_size,
            flips=args.view_flips,
            normalized_by=model.encoder if args.view_space == "normalized" else None,
        )
        self._metrics: list[dict[str, Tensor]] = []
        self._skipped: Counter[str] = Counter()
        self._images = 0
        self._waited = 0.0
        self._window_start: tuple[float, int, int, float] | None = None
        self._first_bad_step = torch.full((), -1, device=args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step of DCR: images and views -> conditions; latents, noise -> predictions -> noise-space InfoNCE."""
        images = inputs["images"]  # (B, 3, H, W) in [0, 1]
        views = self.view(images)
        conditions, view_conditions = model(torch.cat([images, views])).chunk(2)  # (B, C) each
        diffused = Diffused.draw(self.denoiser, images)
        loss, metrics = OBJECTIVES[self.args.objective](
            self.denoiser, diffused, conditions, view_conditions, self.args.temperature, self.negatives
        )
        self._record(loss, metrics, inputs)
        return (loss, {"conditions": conditions}) if return_outputs else loss

    def train(self, *args, **kwargs):
        # Trainer seeds every rank alike: noise, timesteps, views and dropout must differ between ranks.
        set_seed(self.args.seed + self.args.process_index)
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """`TrainingImages` is this rank's own stream; prepared by accelerate it would be divided a second time."""
        if not isinstance(self.train_dataset, TrainingImages):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            drop_last=True,
        )

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - start
        return samples

    def _prepare_input(self, data):
        """Copies from pinned memory that the host does not wait for."""
        if isinstance(data, Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # Metrics stay on the device until they are logged: reading one would make the host wait for the step.

    def _record(self, loss: Tensor, metrics: dict[str, Tensor], inputs: dict) -> None:
        self._metrics.append(metrics)
        self._skipped.update(reason for reason, _ in inputs["skipped"])
        self._images += len(inputs["images"])
        bad_now = ~loss.detach().isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad_now, self.state.global_step + 1, self._first_bad_step)
        if self._window_start is None:
            self._start_window()

    def _start_window(self) -> None:
        self._window_start = (time.perf_counter(), self._images, self.denoiser.evaluations, self._waited)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a training step's line the averages over the logging window and over all ranks."""
        if "loss" in logs and self._metrics:
            self.stop_if_not_finite()
            logs |= self._window_means() | self._window_rates()
            logs |= self._skipped_counts()
            self._metrics.clear()
            self._start_window()
        super().log(logs, start_time)

    def _window_means(self) -> dict[str, float]:
        names = list(self._metrics[0])
        means = torch.stack([torch.stack([step[name] for name in names]) for step in self._metrics]).mean(dim=0)
        means = self.accelerator.reduce(means, reduction="mean").tolist()
        return dict(zip(names, means, strict=True))

    def _window_rates(self) -> dict[str, float]:
        start, images, evaluations, waited = self._window_start
        seconds = time.perf_counter() - start
        world = self.args.world_size
        return {
            "images_per_second": round((self._images - images) * world / seconds, 3),
            "unet_evaluations_per_second": round((self.denoiser.evaluations - evaluations) * world / seconds, 3),
            # The host waits for data while the device may still be busy: an upper bound of the device's own wait.
            "data_wait_share": round((self._waited - waited) / seconds, 4),
        }

    def _skipped_counts(self) -> dict[str, float]:
        """Images left out since the start, of all ranks, by reason."""
        every_rank = Counter()
        for counts in self._gather_objects(dict(self._skipped)):
            every_rank.update(counts)
        return {"skipped_images": every_rank.total()} | {
            f"skipped/{reason.replace(' ', '_')}": count for reason, count in sorted(every_rank.items())
        }

    def _gather_objects(self, value) -> list:
        if self.args.world_size == 1:
            return [value]
        gathered = [None] * self.args.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def stop_if_not_finite(self) -> None:
        """Raise on every rank if the loss of any rank was not finite at any step since the start.

        Raises:
            NonFiniteLossError: names the step and where the last checkpoint is.
        """
        steps = [step for step in self._gather_objects(int(self._first_bad_step)) if step >= 0]
        if steps:
            raise NonFiniteLossError(
                f"the loss was not finite at step {min(steps)}. Nothing was saved since; the last checkpoint, if "
                f"there is one, is in {self.args.output_dir}. Try a lower learning rate, or --denoiser_dtype float32."
            )

    # Checkpoints hold what is trained: the projector or the adapter, never the base encoder or the denoiser.

    def _save_checkpoint(self, model, trial):
        self.stop_if_not_finite()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_trained(folder, state_dict)
        # As text: nobody should have to unpickle a file to read how a checkpoint was made.
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
