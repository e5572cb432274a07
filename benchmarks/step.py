"""A complete training step, ours against one in the released code's manner, in the same run on the same weights.

    python benchmarks/step.py --output_dir out/step                  # on a GPU: ViT-L/14, SD 2.1, B = 16, bf16
    python benchmarks/step.py --output_dir out/step --image_size 336
    python benchmarks/step.py --output_dir out/step --sd small --encoder small    # the default without a GPU

Weights are random: neither speed nor memory depends on them. Writes step.json, step.md and, with --sweep, step.png.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from loader import write_shards
from random_models import ENCODERS, SIZES, random_denoiser, random_text_encoder, random_unet, stage2_model
from released import ReleasedStep, empty_prompt
from report import device_facts, plot_sweep, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm

from dcr_hf import DCRConfig, DCRTrainer
from dcr_hf.data.augment import PositiveView
from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import TrainingImages
from dcr_hf.denoiser.planner import LiveBytes
from dcr_hf.objectives import Batch, Diffused, Settings, dcr


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter does not know the CPU's attention.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
SWEPT_CHUNKS = (8, 16, 32, 64, 128, 0)
SWEPT_BATCHES = (4, 8, 16)


@dataclass
class Row:
    """One way to make a step. Bytes are those of tensors made in the step on a CPU, and of all on a GPU."""

    name: str
    batch: int
    chunk: str
    seconds: float | None = None
    peak_bytes: int | None = None
    tera_operations: float | None = None
    relative_loss_difference: float | None = None
    failed: str | None = None


class Bench:
    """Models of one size on one device, and what is measured of them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        torch.manual_seed(0)
        self.args = DCRConfig(
            output_dir=options.output_dir,
            per_device_train_batch_size=options.batch,
            report_to="none",
            torch_compile=options.torch_compile,
            max_steps=1,
        )
        self.device = self.args.device
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        size = SIZES[options.sd]
        unet, text_encoder = random_unet(size, dtype), random_text_encoder(size, dtype)
        self.plain_unet = copy.deepcopy(unet)  # neither channels-last nor with our attention processors
        denoiser = random_denoiser(size, unet, empty_prompt(text_encoder))
        self.model = stage2_model(options.encoder, options.image_size, size.condition, self.args)
        self.trainer = DCRTrainer(self.model, self.args, denoiser)
        self.model.to(self.device).train()
        self.denoiser = self.trainer.denoiser
        view = PositiveView(options.image_size)
        self.released = ReleasedStep(self.plain_unet, text_encoder.to(self.device), self.denoiser, view)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5)

    def images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        side = self.options.image_size
        return torch.rand(batch, 3, side, side, generator=generator).to(self.device)

    def ours(self, images: Tensor) -> Tensor:
        return self.trainer.compute_loss(self.model, {"images": images, "skipped": [], "position": None})

    def theirs(self, images: Tensor) -> Tensor:
        return self.released(self.model, images)

    def step(self, loss_of: Callable[[Tensor], Tensor], images: Tensor) -> None:
        with self.trainer.compute_loss_context_manager():
            loss = loss_of(images)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def only(self, plain: bool) -> None:
        """Leave one of the two UNets on the device."""
        (self.denoiser.unet if plain else self.plain_unet).to("cpu")
        (self.plain_unet if plain else self.denoiser.unet).to(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure(self, name: str, batch: int, chunk: int | str = 0, plain: bool = False, brief: bool = False) -> Row:
        """Time and memory of a step, and if not `brief` its operations and loss. One that does not fit counts too."""
        row = Row(name, batch, "-" if plain else str(chunk))
        self.only(plain)
        self.denoiser.pair_chunk_size = chunk
        self.denoiser.reset_chunk_plans()
        loss_of, images = self.theirs if plain else self.ours, self.images(batch)
        try:
            self.step(loss_of, images)  # warm-up: work spaces, the plan, compilation, the optimizer's state
            row.peak_bytes = self.peak(loss_of, images)
            row.seconds = self.seconds(loss_of, images)
            if brief:
                return row
            if not self.options.torch_compile:
                with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                    self.step(loss_of, images)
                row.tera_operations = counter.get_total_flops() / 1e12
            row.relative_loss_difference = self.loss_difference(batch, plain)
        except torch.OutOfMemoryError:
            row.failed = "out of memory"
            self.optimizer.zero_grad()
        return row

    def peak(self, loss_of: Callable, images: Tensor) -> int:
        if self.device.type != "cuda":
            with LiveBytes() as live:
                self.step(loss_of, images)
            return live.peak
        torch.cuda.reset_peak_memory_stats()
        self.step(loss_of, images)
        return torch.cuda.max_memory_allocated()

    def seconds(self, loss_of: Callable, images: Tensor) -> float:
        """The median step: on a CPU by the processor time of this process, which others' load does not change."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        times = []
        for _ in range(self.options.steps):
            self.wait()
            start = clock()
            self.step(loss_of, images)
            self.wait()
            times.append(clock() - start)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds_with_loader(self, batch: int, chunk: int | str, shards: Path) -> float:
        """The mean step when images come from shards, decoded by worker processes meanwhile."""
        self.only(plain=False)
        self.denoiser.pair_chunk_size = chunk
        images = TrainingImages(
            find_source(str(shards)), self.options.image_size, batch, num_workers=self.options.workers
        )
        self.trainer.train_dataset, self.args.dataloader_num_workers = images, self.options.workers
        stream = iter(self.trainer.get_train_dataloader())
        for step in range(self.options.steps + 1):
            if step == 1:  # the first waits for the workers to start
                self.wait()
                start = time.perf_counter()
            self.step(self.ours, self.trainer._prepare_inputs(next(stream))["images"])
        self.wait()
        return (time.perf_counter() - start) / self.options.steps

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

    def loss_difference(self, batch: int, plain: bool) -> float:
        """To the baseline's loss on the same inputs, which is computed once for each batch size."""
        if plain:
            self.baseline_loss = self.fixed_loss(batch, plain=True)
        return abs(self.fixed_loss(batch, plain) / self.baseline_loss - 1)


def table(bench: Bench, options: argparse.Namespace) -> list[Row]:
    B = options.batch
    ways = [
        ("released manner", 0, True),
        ("ours, all at once", 0, False),
        ("ours, chunks of 32", 32, False),
        ("ours, auto", "auto", False),
    ]
    rows = [bench.measure(name, B, chunk, plain) for name, chunk, plain in tqdm(ways, desc="ways")]
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), shards=4, images=max(64, 2 * B), side=512)
        row = Row("ours, auto, with the loader, by the clock", B, "auto")
        row.seconds = bench.seconds_with_loader(B, "auto", Path(folder))
    return [*rows, row]


def sweep(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Memory and time over the chunk size and over B."""
    B = options.batch
    runs = [(B, chunk, False) for chunk in SWEPT_CHUNKS if chunk < B * B]
    runs += [(batch, chunk, plain) for batch in SWEPT_BATCHES for chunk, plain in ((0, True), (0, False), (32, False))]
    rows = []
    for batch, chunk, plain in tqdm(runs, desc="sweep"):
        rows.append(bench.measure("released manner" if plain else "ours", batch, chunk, plain, brief=True))
    return rows


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--sd", choices=SIZES, default="sd21" if cuda else "small")
    parser.add_argument("--encoder", choices=ENCODERS, default="vitl" if cuda else "small")
    parser.add_argument("--image_size", type=int, default=224 if cuda else 64)
    parser.add_argument("--batch", type=int, default=16, help="B, images")
    parser.add_argument("--steps", type=int, default=5 if cuda else 3, help="timed steps; the median counts")
    parser.add_argument("--workers", type=int, default=4 if cuda else 1, help="of the loader")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--sweep", action="store_true", help="also over chunk sizes and over B, with a plot")
    options = parser.parse_args()
    if not cuda:
        torch.set_num_threads(1)
    bench = Bench(options)
    facts = device_facts(bench.device) | {name: str(value) for name, value in vars(options).items()}
    folder, rows = Path(options.output_dir), [asdict(row) for row in table(bench, options)]
    print(save(folder, facts, rows, []))
    if options.sweep:
        swept = [asdict(row) for row in sweep(bench, options)]
        save(folder, facts, rows, swept)
        plot_sweep(folder / "step.png", swept, facts)


if __name__ == "__main__":
    main()
