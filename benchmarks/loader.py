"""Images a second of one loader worker, at full and at reduced size, against what a device needs.

    python benchmarks/loader.py --need 45

--need: images a second that training takes in (B over the seconds a step of benchmarks/step.py). Says how many workers
feed it. One process, one thread: what a worker does. The images are synthetic JPEGs with the detail of photographs.
"""

import argparse
import io
import math
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcr_hf.data.images import decode_image, random_resized_crop
from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import TrainingImages


def photograph(side: int, seed: int) -> bytes:
    """A JPEG whose spectrum falls like a photograph's, as 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((3, side, side))) / frequency
    pixels = np.fft.ifft2(spectrum).real
    pixels = 128 + 40 * (pixels - pixels.mean()) / pixels.std()
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shards(folder: Path, shards: int, images: int, side: int) -> None:
    """Webdataset shards of `images` photographs each; 16 different ones."""
    contents = [photograph(side, seed) for seed in range(16)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(images):
                member = tarfile.TarInfo(f"{shard:05d}{number:04d}.jpg")
                member.size = len(contents[number % 16])
                tar.addfile(member, io.BytesIO(contents[number % 16]))


def decoding_rate(content: bytes, size: int, enough: int | None, seconds: float) -> float:
    """Images decoded and cropped a second."""
    rng = np.random.default_rng(0)
    return rate(lambda: random_resized_crop(decode_image(content, enough), size, rng), seconds)


def stream_rate(side: int, size: int, seconds: float) -> float:
    """Images a second through the complete stream: shard, shuffle, decode, crop, tensor."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), shards=1, images=256, side=side)
        stream = iter(TrainingImages(find_source(folder), size, batch_size=16))
        next(stream)
        return rate(lambda: next(stream), seconds)


def rate(function: Callable[[], object], seconds: float) -> float:
    """Calls a second, by the processor time of this process, which others' load does not change."""
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        function()
        count += 1
    return count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--need", type=float, help="images a second that the device takes in")
    parser.add_argument("--seconds", type=float, default=3, help="that each measurement lasts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| JPEG | decoded at full size, images/s | reduced, images/s | complete stream, images/s | workers needed |")
    print("|---|---|---|---|---|")
    for side in (256, 512, 1024, 2048):
        content = photograph(side, 0)
        full = decoding_rate(content, options.image_size, None, options.seconds)
        reduced = decoding_rate(content, options.image_size, 2 * options.image_size, options.seconds)
        stream = stream_rate(side, options.image_size, options.seconds)
        workers = math.ceil(options.need / stream) if options.need else ""
        print(f"| {side} x {side} | {full:.0f} | {reduced:.0f} | {stream:.0f} | {workers} |")


if __name__ == "__main__":
    main()
