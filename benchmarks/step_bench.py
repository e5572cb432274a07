"""Steps of one model size on one device, each way measured in a Trainer of its own."""

import argparse
import contextlib
import copy
import gc
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from loader import write_shards
from random_models import SIZES, random_denoiser, random_model, random_text_encoder, random_unet
from released import ReleasedStep, empty_prompt
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainer_step import OneImage, ReleasedTrainer, StepMeter
from ways import KERNELS, Row, Way

from dcr_hf import DCRConfig, DCRTrainer
from dcr_hf.data.augment import PositiveView
from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import TrainingImages
from dcr_hf.denoiser.chunks import lacks_memory
from dcr_hf.objectives import Batch, Diffused, Settings, dcr


class Bench:
    """A denoiser of one size on one device, a fresh model for each row, and what is measured of them."""

    def __init__(self, options: argparse.Namespace, folder: str):
        self.options, self.folder = options, folder
        self.device = self.config(options.batch, Way(0), 1).device
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        size = SIZES[options.sd]
        torch.manual_seed(0)
        with torch.device(self.device):  # random numbers for a billion weights: seconds there, minutes on a CPU
            unet, text_encoder = random_unet(size, dtype), random_text_encoder(size, dtype)
        self.plain_unet = copy.deepcopy(unet)  # neither channels-last nor with our attention processors
        self.denoiser = random_denoiser(size, unet, empty_prompt(text_encoder)).to(self.device)
        view = PositiveView(options.image_size)
        self.released = ReleasedStep(self.plain_unet, text_encoder, self.denoiser, view)
        self._losses: dict[int, float | None] = {}

    def config(self, batch: int, way: Way, steps: int) -> DCRConfig:
        o = self.options
        for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO")]:
            del os.environ[name]  # an earlier configuration's: it would compile the released manner too
        return DCRConfig(
            output_dir=self.folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            dataloader_num_workers=o.workers if "loader" in way.words else 0,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            max_steps=steps,
            torch_compile=o.torch_compile and way.chunk is not None,
            **({"gradient_checkpointing": True} if "checkpointing" in way.words else {}),
            **({"torch_compile_backend": o.compile_backend} if o.torch_compile else {}),
            **({"torch_compile_mode": o.compile_mode} if o.torch_compile and o.compile_mode else {}),
        )

    def measure(self, way: Way, batch: int, brief: bool = False) -> Row:
        """Time and memory of a step, and if not `brief` its operations and loss; whatever fails is in the row."""
        row = Row(way.name, batch, "-" if way.chunk is None else str(way.chunk))
        try:
            self._train(row, way, batch, brief)
            if not brief:
                row.relative_loss_difference = self.loss_difference(batch, way.chunk is None)
        except Exception as error:  # the others are still worth measuring
            failure = f"{type(error).__name__}: {error}"[:300]
            row.failed = "out of memory" if isinstance(error, RuntimeError) and lacks_memory(error) else failure
            traceback.print_exc()
        # Only here, after the error is gone: its traceback holds all that the attempt allocated.
        self._clean()
        return row

    def _train(self, row: Row, way: Way, batch: int, brief: bool) -> None:
        o, plain = self.options, way.chunk is None
        self.only(plain)
        self.denoiser.pair_chunk_size = way.chunk or 0
        layout = torch.contiguous_format if "contiguous" in way.words else torch.channels_last
        for weight in self.denoiser.unet.parameters():  # not unet.to: it would reorder the keys of E too
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=layout)
        counts = not brief and not o.torch_compile and "loader" not in way.words
        meter = StepMeter(self.device, o.steps, counts, "profile" in way.words)
        args = self.config(batch, way, meter.steps)
        with torch.device(self.device):
            model = random_model(o.encoder, o.image_size, SIZES[o.sd].condition, args, o.stage)
        kind = ReleasedTrainer if plain else DCRTrainer
        with self.images(way, batch, meter.steps) as images:
            trainer = kind(model, args, self.denoiser, images, callbacks=[meter])
            self.only(plain)  # the Trainer has moved all of the denoiser to the device
            if isinstance(trainer, ReleasedTrainer):
                trainer.released = self.released
            kernels = [KERNELS[word] for word in way.words if word in KERNELS]
            kernels += [SDPBackend.MATH] * bool(kernels)  # for the VAE, whose heads are too wide for most of them
            try:
                with sdpa_kernel(kernels) if kernels else contextlib.nullcontext():
                    trainer.train()
            finally:
                meter.close()
        self._fill(row, way, meter)

    def _fill(self, row: Row, way: Way, meter: StepMeter) -> None:
        found = meter.found
        row.seconds = sorted(found.seconds)[len(found.seconds) // 2]
        row.host_seconds = sorted(found.host_seconds)[len(found.host_seconds) // 2]
        for name in (
            "seconds_in_a_row",
            "warmup_seconds",
            "peak_bytes",
            "reserved_bytes",
            "tera_operations",
            "kernels",
        ):
            setattr(row, name, getattr(found, name))
        if "loader" in way.words:  # what counts is the time with its data
            row.seconds = row.seconds_in_a_row
        if way.chunk is not None:
            row.plan = [(plan.size, plan.kept) for plan in self.denoiser._plans.values()]
            pairs = {key[1]: plan.size for key, plan in self.denoiser._plans.items()}
            asked = {count: min(count, way.chunk or count) for count in pairs if way.chunk != "auto"}
            if lowered := [size for count, size in pairs.items() if size < asked.get(count, 0)]:
                row.note = f"out of memory: halved to chunks of {min(lowered)}"

    @contextlib.contextmanager
    def images(self, way: Way, batch: int, steps: int) -> Iterator[OneImage | TrainingImages]:
        o = self.options
        if "loader" not in way.words:
            yield OneImage(o.image_size, batch, steps)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), shards=4, images=max(64, 2 * batch), side=512)
            yield TrainingImages(find_source(folder), o.image_size, batch, num_workers=o.workers)

    def only(self, plain: bool) -> None:
        """Leave one of the two UNets on the device."""
        (self.denoiser.unet if plain else self.plain_unet).to("cpu")
        (self.plain_unet if plain else self.denoiser.unet).to(self.device)

    def _clean(self) -> None:
        self.denoiser.reset_chunk_plans()
        torch._dynamo.reset()  # its limit of graphs holds for a function, not for a row
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fixed_loss(self, batch: int, plain: bool) -> float:
        """The loss for given conditions, latents, noise and timesteps."""
        generator = torch.Generator().manual_seed(1)
        side = self.options.image_size // 8
        conditions, views = torch.randn(2, batch, self.denoiser.condition_width, generator=generator).to(self.device)
        noisy, noise, target = torch.randn(3, batch, 4, side, side, generator=generator).to(self.device)
        timesteps = torch.randint(1000, (batch,), generator=generator).to(self.device)
        diffused = Diffused(noisy, noisy, timesteps, noise, target)  # the loss does not look at the clean latents
        with torch.no_grad():
            if plain:
                return self.released.loss(diffused, conditions, views).item()
            # Nor at the embeddings.
            paper = Batch(conditions, views, conditions, views, lambda: diffused)
            return dcr(self.denoiser, paper, Settings()).loss.item()

    def loss_difference(self, batch: int, plain: bool) -> float | None:
        """To the released manner's loss on the same inputs; None where that does not fit even without gradients."""
        if batch not in self._losses:
            self.only(plain=True)
            self._losses[batch] = self._or_none(lambda: self.fixed_loss(batch, plain=True))
            self._clean()
            self.only(plain)
        expected = self._losses[batch]
        return expected and abs(self.fixed_loss(batch, plain) / expected - 1)

    @staticmethod
    def _or_none(function: Callable[[], float]) -> float | None:
        try:
            return function()
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            return None
