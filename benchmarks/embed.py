"""Images a second from files to stored embeddings, against a plain batched loop and one image at a time; memory.

    python benchmarks/embed.py                         # speed, ViT-B/16-sized encoder with random weights
    python benchmarks/embed.py --photograph 4000 3000  # the same on photographs as cameras take them
    python benchmarks/embed.py --memory 5000 50000     # peak memory over synthetic sets of these sizes

All ways run in the same process on the same files, in turns, several times; medians are reported.
"""

import argparse
import io
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.utils import logging as transformers_logging

from dcr_hf.evaluation.embedding.embed import DiskEmbedder
from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.image_sets import LabeledImages
from dcr_hf.evaluation.readers.shards import read_labeled

BATCH = 32
# glibc keeps what is freed for later, more or less of it by chance. Made to return it, what a process
# has is what it holds.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
AGAIN = "dcr_hf, second run"
VIT_B_16 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
THIN = {"hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 64}


def save_encoder(folder: Path, tower: dict, image_size: int, patch_size: int) -> Path:
    torch.manual_seed(0)
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    text |= {"intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**tower, "image_size": image_size, "patch_size": patch_size}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=side).save_pretrained(folder)
    return folder


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files, by default of about the size of ImageNet's, cut from the photographs of scikit-learn."""
    from sklearn.datasets import load_sample_images

    sources = load_sample_images().images
    (folder / "photographs" / "all").mkdir(parents=True)
    for index in range(count):
        source = Image.fromarray(sources[index % len(sources)])
        left, top = (index * 13) % 140, (index * 7) % 52
        crop = source.crop((left, top, left + 500, top + 375)).resize(size)
        crop.save(folder / "photographs" / "all" / f"{index:05d}.jpg", quality=92)


def one_by_one(encoder: PretrainedEncoder, data: LabeledImages) -> np.ndarray:
    return batched(encoder, data, size=1)


def batched(encoder: PretrainedEncoder, data: LabeledImages, size: int = BATCH) -> np.ndarray:
    """The plain loop: decode and resize a batch, run the model on it, take the next one."""
    features = []
    for start in range(0, len(data.images), size):
        rows = range(start, min(start + size, len(data.images)))
        pixels = [encoder.preprocess(decode_image(data.images.read(row), data.images.name(row))) for row in rows]
        features.append(encoder.embed_images(torch.stack(pixels))["projected"])
    return np.concatenate(features)


def stored(encoder: PretrainedEncoder, data: LabeledImages, cache: Path, workers: int) -> np.ndarray:
    embedder = DiskEmbedder(cache, BATCH, workers)
    embedder.embed(encoder, data)
    return np.array(embedder.embeddings(encoder, data).images("projected"))


def again(path: Path, data: LabeledImages, cache: Path, workers: int) -> np.ndarray:
    """As a new process would: the checkpoint's files are hashed again to find what was stored."""
    return stored(PretrainedEncoder("vit-b-16", str(path), device=PartialState().device), data, cache, workers)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    features = run()
    return time.perf_counter() - start, features


def ratio(slow: list[float], fast: list[float]) -> str:
    """Median over the rounds of how many times as fast, with its 95 % interval (rounds drawn again)."""
    ratios = np.array(slow) / np.array(fast)
    again = np.median(np.random.default_rng(0).choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    return f"{np.median(ratios):.2f} x ({low:.2f} to {high:.2f})"


def speed(images: int, photograph: tuple[int, int], rounds: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, images, photograph)
        data = read_labeled("photographs", None, root)
        path = save_encoder(root / "encoder", VIT_B_16, 224, 16)
        encoder = PretrainedEncoder("vit-b-16", str(path), device=PartialState().device)
        batched(encoder, data, size=BATCH)  # warm up: threads, allocator, page cache
        seconds: dict[str, list[float]] = {}
        results: dict[str, np.ndarray] = {}
        for turn in range(rounds):
            ways = {
                "one image at a time": lambda: one_by_one(encoder, data),
                "plain batched loop": lambda: batched(encoder, data),
                "dcr_hf, first run": lambda turn=turn: stored(encoder, data, root / f"cache{turn}", workers),
            }
            # In another order each time: a machine that is shared gets faster and slower on its own.
            for name in [*ways][turn % 3 :] + [*ways][: turn % 3]:
                duration, results[name] = timed(ways[name])
                seconds.setdefault(name, []).append(duration)
            duration, results[AGAIN] = timed(lambda turn=turn: again(path, data, root / f"cache{turn}", workers))
            seconds.setdefault(AGAIN, []).append(duration)
        files = f"{images} JPEG files of {photograph[0]} x {photograph[1]}"
        machine = f"{encoder.device}, {workers} decoding processes, {os.cpu_count()} CPU cores"
        print(f"{files}, ViT-B/16 at 224, {machine}, median of {rounds} rounds")
        for name, durations in seconds.items():
            difference = np.abs(results[name] - results["one image at a time"]).max()
            rate = images / median(durations)
            print(f"{name:<22}{rate:>10.1f} images/s   largest difference of an embedding {difference:.1e}")
        first = seconds["dcr_hf, first run"]
        for name in ("plain batched loop", "one image at a time"):
            print(f"first run against {name}: {ratio(seconds[name], first)}")
        print(f"second run against the first: {ratio(first, seconds[AGAIN])}")


def write_tiny_shards(folder: Path, count: int) -> None:
    """A classification set of `count` different 32-pixel PNG files in CLIP_benchmark's layout."""
    (folder / "tiny" / "test").mkdir(parents=True)
    generator = np.random.default_rng(0)
    with tarfile.open(folder / "tiny" / "test" / "0.tar", "w") as tar:
        for index in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG", compress_level=1)
            for suffix, content in (("png", buffer.getvalue()), ("cls", str(index % 10).encode())):
                info = tarfile.TarInfo(f"s{index:07d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "tiny" / "test" / "nshards.txt").write_text("1\n")
    (folder / "tiny" / "classnames.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    (folder / "tiny" / "zeroshot_classification_templates.txt").write_text("{c}\n")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    read_labeled("tiny", None, folder)  # converts the shards, once


def peak_of(count: int) -> None:
    """Runs in a process of its own, under GIVE_BACK: prints the peak of its private memory while `count` images are
    embedded."""
    peak, done = [0], threading.Event()

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], private())

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        datasets.config.HF_DATASETS_CACHE = root / "datasets"
        writer = multiprocessing.Process(target=write_tiny_shards, args=(root, count))  # keeps its heap to itself
        writer.start()
        writer.join()
        path = save_encoder(root / "encoder", THIN, 32, 16)
        data = read_labeled("tiny", None, root)
        encoder = PretrainedEncoder("thin", str(path))
        before = private()
        threading.Thread(target=watch, daemon=True).start()
        embedder = DiskEmbedder(root / "cache", 64, workers=1)
        embedder.embed(encoder, data)
        features = embedder.embeddings(encoder, data).images("projected")
        done.set()
        size = sum(file.stat().st_size for file in (root / "cache").rglob("*.npy"))
    memory = f"{before / 1024:.0f} MiB private before, at most {peak[0] / 1024:.0f} MiB while it is embedded"
    print(f"{count:>7,} images: {memory}; {size / 2**20:.0f} MiB of features on disk, {features.shape} and alike")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--photograph", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--memory", type=int, nargs="+", metavar="COUNT", help="measure memory instead of speed")
    parser.add_argument("--peak_of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()
    PartialState(cpu=not torch.accelerator.is_available())
    if options.peak_of:
        peak_of(options.peak_of)
    elif options.memory:
        for count in options.memory:
            again = [sys.executable, __file__, "--peak_of", str(count)]
            subprocess.run(again, check=True, env=os.environ | GIVE_BACK)
    else:
        speed(options.images, tuple(options.photograph), options.rounds, options.workers)


if __name__ == "__main__":
    main()
