"""The stream of training images: decoded, cropped, shuffled, counted; disjoint over ranks and workers; endless."""

import itertools
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dcr_hf.images import BadImageError, decode_image, random_resized_crop
from dcr_hf.sources import Source

WINDOW = 1000


class TrainingImages(IterableDataset):
    """Endless stream of one rank's images, in whole batches of different images.

    Every epoch deals the source's units out to the ranks and workers anew; each reader shuffles its images in blocks
    and drops what does not fill a batch at the end of its share. Crops depend on seed, epoch and key alone, so that
    the stream is the same however often it is run.

    Args:
        source: see `sources.find_source`.
        image_size: side of the square crops, in pixels.
        batch_size: B; a reader's share of an epoch yields a multiple of it.
        seed: of order and crops.
        rank, world_size: this process and how many there are.
        num_workers: worker processes of this rank's DataLoader.
        shuffle_buffer: images a block.
        max_bad_fraction: of a reader's last 1,000 images; more end the run.

    Yields:
        {"image": uint8 (3, H, W), "key": str, "skipped": [(reason, key), ...] left out since the last item}.

    Raises:
        ValueError: while iterating, when too many images are bad, or a reader's share does not fill one batch.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle_buffer: int = 2000,
        max_bad_fraction: float = 0.1,
    ):
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.max_bad_fraction = max_bad_fraction

    def __iter__(self) -> Iterator[dict]:
        skipped: list[tuple[str, str]] = []
        window: deque[tuple[str, str] | None] = deque(maxlen=WINDOW)
        for epoch in itertools.count():
            batch, batches = [], 0
            for item in self._epoch(epoch, window, skipped):
                batch.append(item)
                if len(batch) == self.batch_size:
                    batch[0]["skipped"], skipped[:] = list(skipped), []
                    yield from batch
                    batch, batches = [], batches + 1
            if not batches:
                self._refuse_small_share(len(batch), skipped)

    def _epoch(self, epoch: int, window: deque, skipped: list) -> Iterator[dict]:
        readers = self.world_size * max(1, self.num_workers)
        rows = self.source.epoch(self.seed, epoch, self.rank, self.world_size, readers)
        for number, block in enumerate(_blocks(rows, self.shuffle_buffer)):
            # Whole blocks instead of a rolling buffer: where a reader is, is then a block and a number in it.
            for index in np.random.default_rng([self.seed, epoch, number]).permutation(len(block)):
                row = block[index]
                try:
                    image = self._load(row, epoch)
                except BadImageError as error:
                    skipped.append((str(error), row["key"]))
                    window.append(skipped[-1])
                    self._refuse_bad_data(window)
                else:
                    window.append(None)
                    yield {"image": image, "key": row["key"], "skipped": []}

    def _load(self, row: dict, epoch: int) -> Tensor:
        if row["error"] is not None:
            raise BadImageError(row["error"])
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(row["key"].encode())])
        # Twice what the crop is resized to, so that the decoder's own averaging is not seen in it.
        image = decode_image(row["image"], enough=2 * self.image_size)
        return _to_tensor(random_resized_crop(image, self.image_size, rng))

    def _refuse_bad_data(self, window: deque) -> None:
        bad = [entry for entry in window if entry is not None]
        if len(window) == WINDOW and len(bad) > self.max_bad_fraction * WINDOW:
            raise ValueError(
                f"{len(bad)} of the last {WINDOW} training images cannot be used, more than --max_bad_fraction "
                f"{self.max_bad_fraction}: {describe_skipped(bad)}. Is --train_data what you meant? Repair it, or "
                "raise --max_bad_fraction."
            )

    def _refuse_small_share(self, usable: int, skipped: list) -> None:
        worker = get_worker_info()
        reader = f"rank {self.rank}" + (f", worker {worker.id}" if worker else "")
        raise ValueError(
            f"the share of {reader} in --train_data has {usable} usable images an epoch, which do not fill one batch "
            f"of {self.batch_size}"
            + (f" ({len(skipped)} were skipped: {describe_skipped(skipped)})" if skipped else "")
            + f". There are {self.world_size} ranks with {max(1, self.num_workers)} readers each: give more data, or "
            "lower --dataloader_num_workers or --per_device_train_batch_size."
        )


def _blocks(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, size)):
        yield block


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


def describe_skipped(skipped: list[tuple[str, str]], examples: int = 3) -> str:
    """'12 truncated (000010004, 000010017, ...), 1 empty (000020001)'"""
    keys: dict[str, list[str]] = {}
    for reason, key in skipped:
        keys.setdefault(reason, []).append(key)
    counts = Counter(reason for reason, _ in skipped).most_common()
    return ", ".join(
        f"{count} {reason} ({', '.join(keys[reason][:examples])}{', ...' if count > examples else ''})"
        for reason, count in counts
    )


def collate(items: list[dict]) -> dict:
    """Items of `TrainingImages` -> {"images": (B, 3, H, W) in [0, 1], "keys": [...], "skipped": [...]}."""
    return {
        "images": torch.stack([item["image"] for item in items]).float() / 255,
        "keys": [item["key"] for item in items],
        "skipped": [entry for item in items for entry in item["skipped"]],
    }
