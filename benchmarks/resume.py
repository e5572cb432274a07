"""Time from starting a reader to its first batch, at the beginning and when it resumes late in the data.

    python benchmarks/resume.py --output_dir out/resume

Synthetic shards in CC3M's layout. Beside it, in the same run, what transformers does for any streamed data set: read
and decode again all that was consumed, and throw it away. Writes resume.json.
"""

import argparse
import io
import itertools
import json
import platform
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import StreamState, TrainingImages, collate

BATCH = 16


def write_shards(folder: Path, shards: int, images: int) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).resize((320, 240)).save(buffer, "JPEG")
    content = buffer.getvalue()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(images):
                info = tarfile.TarInfo(f"{shard:05d}{index:04d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def loader(images: TrainingImages) -> DataLoader:
    return DataLoader(images, batch_size=BATCH, collate_fn=collate)


def first_batch(images: TrainingImages) -> tuple[float, list[str]]:
    start = time.perf_counter()
    batch = next(iter(loader(images)))
    return time.perf_counter() - start, batch["keys"]


def measure(folder: Path, steps: int) -> dict:
    def stream(state: StreamState | None = None) -> TrainingImages:
        return TrainingImages(find_source(str(folder)), 224, BATCH, shuffle_buffer=2000, state=state)

    images = stream()
    state = images.state
    start = time.perf_counter()
    batches = iter(loader(images))
    for batch in itertools.islice(batches, steps):
        lane, state.positions[lane] = batch["position"]
        state.batches += 1
    expected = next(batches)["keys"]
    replayed = time.perf_counter() - start
    resumed, found = first_batch(stream(state))
    assert found == expected, "the resumed stream is another one"
    return {"step": steps, "resumed_seconds": resumed, "replayed_seconds": replayed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 1_000, 10_000], help="of one process, B = 16")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--images_a_shard", type=int, default=2_000)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.shards, options.images_a_shard)
        images = TrainingImages(find_source(folder), 224, BATCH, shuffle_buffer=2000)
        fresh, _ = first_batch(images)
        rows = [{"step": 0, "resumed_seconds": fresh, "replayed_seconds": fresh}]
        rows += [measure(Path(folder), steps) for steps in options.steps]
    for row in rows:
        print(
            "step {step:>6}: first batch after {resumed_seconds:7.2f} s, by replay {replayed_seconds:8.2f} s".format(
                **row
            )
        )
    facts = {"batch": BATCH, "processor": platform.machine(), "rows": rows}
    (options.output_dir / "resume.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
