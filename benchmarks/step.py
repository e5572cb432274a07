"""A training step as DCRTrainer makes it, ours against one in the released code's manner, on the same weights.

    python benchmarks/step.py --output_dir out/step                  # on a GPU: ViT-L/14, SD 2.1, B = 16, bf16
    python benchmarks/step.py --output_dir out/step --image_size 336 --ways released auto auto+checkpointing
    python benchmarks/step.py --output_dir out/step --sd small --encoder small    # the default without a GPU

What is measured is Trainer.train(): the model prepared by accelerate, under autocast, compiled with --torch_compile,
with clipping and the optimizer. The released manner differs in its loss alone, and is never compiled. A way is
`released` or a chunk size (all, auto, a number) with words after it, as in auto+checkpointing+profile:

    checkpointing    of the encoder
    contiguous       the UNet not in channels-last
    cudnn, flash, efficient    this attention kernel, and plain attention where it cannot
    loader           images from shards, decoded by worker processes
    profile          also where the time goes, by kind of kernel

Weights are random: neither speed nor memory depends on them. A way that fails is a row that says so, and rows are
saved as they are made. Writes step.json, step.md and, with --sweep, step.png.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from random_models import ENCODERS, SIZES
from report import device_facts, plot_sweep, save
from step_bench import Bench
from tqdm.auto import tqdm
from ways import Way

WAYS = ("released", "all", "32", "auto", "auto+loader")
SWEPT_CHUNKS = (8, 16, 32, 64, 128, 0)
SWEPT_BATCHES = (4, 8, 16)


def sweep(options: argparse.Namespace) -> list[tuple[Way, int]]:
    """Over the chunk size and over B."""
    B = options.batch
    runs = [(Way(chunk), B) for chunk in SWEPT_CHUNKS if chunk < B * B]
    return runs + [(Way(chunk), batch) for batch in SWEPT_BATCHES for chunk in (None, 0, 32)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--ways", nargs="+", type=Way.of, default=[Way.of(way) for way in WAYS])
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--sd", choices=SIZES, default="sd21" if cuda else "small")
    parser.add_argument("--encoder", choices=ENCODERS, default="vitl" if cuda else "small")
    parser.add_argument("--image_size", type=int, default=224 if cuda else 64)
    parser.add_argument("--batch", type=int, default=16, help="B, images")
    parser.add_argument("--steps", type=int, default=5 if cuda else 3, help="timed steps; the median counts")
    parser.add_argument("--workers", type=int, default=4 if cuda else 1, help="of the loader")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--compile_backend", default="inductor", help="aot_eager runs where there is no compiler")
    parser.add_argument("--compile_mode", help="such as max-autotune-no-cudagraphs")
    parser.add_argument("--sweep", action="store_true", help="also over chunk sizes and over B, with a plot")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    folder = Path(options.output_dir)
    rows: list[dict] = []
    swept: list[dict] = []
    # Past its limit of graphs dynamo would continue uncompiled, and the row would not say so.
    strict = torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
    with tempfile.TemporaryDirectory() as unused, strict:
        bench = Bench(options, unused)
        facts = device_facts(bench.device) | {name: str(value) for name, value in vars(options).items()}
        for way in tqdm(options.ways, desc="ways"):
            rows.append(asdict(bench.measure(way, options.batch)))
            text = save(folder, facts, rows, swept)
        print(text)
        for way, batch in tqdm(sweep(options), desc="sweep") if options.sweep else ():
            swept.append(asdict(bench.measure(way, batch, brief=True)))
            save(folder, facts, rows, swept)
    if swept:
        plot_sweep(folder / "step.png", swept, facts)


if __name__ == "__main__":
    main()
