"""The stream of training images: decoded, cropped, shuffled, counted; disjoint over ranks and workers; endless."""

import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dcr_hf.data.bad_images import SkipWindow, describe_skipped
from dcr_hf.data.dealing import Source
from dcr_hf.data.images import BadImageError, decode_image, random_resized_crop
from dcr_hf.errors import UserError, as_user_error

LANES = 64
EPOCHS_FOR_A_BATCH = 10  # and four a lane: each deals other images to it
BATCHES_A_LANE = 8  # Target batches per lane, so that few images are dropped.


@dataclass
class StreamState:
    """A run's position in its data; its size does not grow with the steps.

    Attributes:
        lanes: the number of independent shares of each epoch. They do not depend on the processes: a run that resumes
            with another number of ranks or workers deals the same lanes to the new readers, and no image is read
            twice in an epoch.
        block: images that a lane shuffles at a time.
        readers: ranks times workers, to which the lanes were last dealt.
        batches: consumed by each rank since then.
        positions: by lane, its position after its last consumed batch: epoch, number of the block, the source's token
            of that block, number of its images used. A missing lane has not begun.
        skipped: the number of images skipped so far, by reason.
    """

    lanes: int
    block: int
    readers: int
    batches: int = 0
    positions: dict[int, dict] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    FILE = "data_state.json"

    @classmethod
    def begin(cls, source: Source, batch_size: int, readers: int, shuffle_buffer: int) -> "StreamState":
        """The initial state: many lanes for much data, so that the number of readers can change; else one a reader.

        Shards of the hub are not divided for more lanes: each lane would fetch all of a shard to read a part of it."""
        each = max(1, LANES // readers)
        if source.images is not None:
            each = max(1, min(each, source.images // (readers * batch_size * BATCHES_A_LANE)))
        if source.remote_shards is not None:
            each = max(1, min(each, source.remote_shards // readers))
        return cls(lanes=readers * each, block=max(batch_size, shuffle_buffer // each), readers=readers)

    @classmethod
    def read(cls, checkpoint: str | Path) -> "StreamState":
        """The state in a checkpoint.

        Raises:
            UserError: the file is missing or broken.
        """
        with as_user_error(f"checkpoint {checkpoint}: {cls.FILE}", OSError, ValueError, TypeError):
            state = cls(**json.loads((Path(checkpoint) / cls.FILE).read_text(encoding="utf-8")))
        state.positions = {int(lane): position for lane, position in state.positions.items()}
        return state

    def write(self, checkpoint: str | Path) -> None:
        (Path(checkpoint) / self.FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def advanced(self, positions: list[dict[int, dict]], batches: int, skipped: dict[str, int]) -> "StreamState":
        """This state after each rank consumed `batches` more and reached these positions of its lanes."""
        merged = dict(self.positions)
        for of_rank in positions:
            merged |= of_rank
        return replace(self, positions=merged, batches=self.batches + batches, skipped=dict(skipped))

    def dealt_to(self, readers: int) -> "StreamState":
        """This state, dealt to that many readers.

        Raises:
            UserError: more readers than lanes.
        """
        if readers > self.lanes:
            raise UserError(
                f"this run's data was dealt into {self.lanes} lanes at its start, which {readers} readers (ranks "
                "times workers) cannot share. Lower --dataloader_num_workers or the number of processes."
            )
        if readers != self.readers:
            self.readers, self.batches = readers, 0
        return self


class TrainingImages(IterableDataset):
    """Endless stream of one rank's images, in full batches of different images.

    Every epoch is dealt into lanes; a reader (one worker of one rank) takes full batches from its lanes in turn. A
    lane shuffles its images in blocks and drops the last, partial batch of its share; a share that has given none is
    completed from the next epoch's. Crops depend on seed, epoch and
    key alone, so that the stream is the same in every run, and exact on resume.

    Args:
        source: see `sources.find_source`.
        image_size: side of the square crops, in pixels.
        batch_size: B, different images each.
        seed: of order and crops.
        rank, world_size: this rank and the number of ranks.
        num_workers: worker processes of this rank's DataLoader.
        shuffle_buffer: images that a reader holds, over all its lanes.
        max_bad_fraction: largest share of bad images among a reader's last 1,000.
        state: where to resume; by default at the beginning.

    Yields:
        {"image": uint8 (3, H, W), "key": str, "skipped": [(reason, key), ...] since the last batch,
        "position": (lane, position) after the batch, on its last item only}.

    Raises:
        UserError: while iterating, when too many images are bad, or all the data does not fill one batch.
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
        state: StreamState | None = None,
    ):
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.workers = max(1, num_workers)
        self.max_bad_fraction = max_bad_fraction
        readers = world_size * self.workers
        self.state = state or StreamState.begin(source, batch_size, readers, shuffle_buffer)
        self.state.dealt_to(readers)

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        # A DataLoader takes a batch from each worker in turn and begins with the first, so worker 0 takes the lanes of
        # the one whose turn it was.
        turn = (number + self.state.batches) % self.workers
        made = -(-(self.state.batches - turn) // self.workers)  # batches of this reader so far
        lanes = range(self.rank * self.workers + turn, self.state.lanes, self.state.readers)
        window = SkipWindow(self.max_bad_fraction, "--train_data")
        batches = [self._batches(lane, window) for lane in lanes]
        for count in itertools.count(made):
            yield from next(batches[count % len(batches)])

    def _batches(self, lane: int, window: SkipWindow) -> Iterator[list[dict]]:
        """A lane's batches, each with the images skipped since the last and the position after it."""
        start = self.state.positions.get(lane, {"epoch": 0, "token": None, "number": 0, "used": 0})
        skipped: list[tuple[str, str]] = []
        batch: list[dict] = []
        epochs_without = 0
        for epoch in itertools.count(start["epoch"]):
            # A share too small for a batch is completed from the lane's share of the next epoch, by other images.
            held, is_enough = {item["key"] for item in batch}, start["number"] + start["used"] > 0
            for item, position in self._images(lane, epoch, start, window, skipped):
                if item["key"] in held:
                    continue
                batch.append(item)
                if len(batch) == self.batch_size:
                    batch[0]["skipped"], skipped[:] = list(skipped), []
                    batch[-1]["position"] = (lane, position)
                    yield batch
                    batch, held, is_enough = [], set(), True
            epochs_without = 0 if is_enough else epochs_without + 1
            if is_enough:
                batch = []
            if epochs_without > EPOCHS_FOR_A_BATCH + 4 * self.state.lanes:
                self._refuse_small_data(len(batch), epochs_without, skipped)
            start = {"epoch": epoch + 1, "token": None, "number": 0, "used": 0}

    def _images(
        self, lane: int, epoch: int, start: dict, window: SkipWindow, skipped: list
    ) -> Iterator[tuple[dict, dict]]:
        """A lane's usable images of an epoch from `start`, each with the position after it."""
        token, used = start["token"], start["used"]
        # Full blocks instead of a rolling buffer: a position is then a block and an index in it.
        blocks = self.source.blocks(self.state.block, self.seed, epoch, lane, self.state.lanes, token)
        for number, (block, next_token) in enumerate(blocks, start["number"]):
            order = np.random.default_rng([self.seed, epoch, lane, number]).permutation(len(block["key"]))
            for index in range(used, len(order)):
                row = {name: column[order[index]] for name, column in block.items()}
                position = {"epoch": epoch, "token": token, "number": number, "used": index + 1}
                try:
                    item = {"image": self._load(row, epoch), "key": row["key"], "skipped": [], "position": None}
                except BadImageError as error:
                    skipped.append((str(error), row["key"]))
                    window.add_bad(*skipped[-1])
                else:
                    window.add_usable()
                    yield item, position
            token, used = next_token, 0

    def _load(self, row: dict, epoch: int) -> Tensor:
        if row["error"] is not None:
            raise BadImageError(row["error"])
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(row["key"].encode())])
        # Twice the final size, so that the decoder's own averaging does not show.
        image = decode_image(row["image"], enough=2 * self.image_size)
        return _to_tensor(random_resized_crop(image, self.image_size, rng))

    def _refuse_small_data(self, usable: int, epochs: int, skipped: list) -> None:
        skipped = list(dict.fromkeys(skipped))  # each epoch met them again
        left_out = f" ({len(skipped)} were skipped: {describe_skipped(skipped)})" if skipped else ""
        raise UserError(
            f"--train_data has too few usable images: a reader found {usable} different ones in {epochs} "
            f"epochs{left_out}, and a batch is {self.batch_size}. Give more data, or lower "
            "--per_device_train_batch_size."
        )


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)


def collate(items: list[dict]) -> dict:
    """Items of `TrainingImages` -> {"images": (B, 3, H, W) in [0, 1], "keys": [...], "skipped": [...], "position"}."""
    return {
        "images": torch.stack([item["image"] for item in items]).float() / 255,
        "keys": [item["key"] for item in items],
        "skipped": [entry for item in items for entry in item["skipped"]],
        "position": items[-1].get("position"),
    }
