"""An epoch of training data, dealt into lanes: from shards and files, or from a streamed table."""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node

from dcr_hf.data.readers import FEATURES, PLACE, read_pieces
from dcr_hf.errors import UserError
from dcr_hf.hub import patiently

Block = dict[str, list]
"""Columns of FEATURES."""


@dataclass(frozen=True)
class FileSource:
    """Webdataset shards, or loose image files in groups.

    Attributes:
        units: paths of shards, or addresses of a hub's (see `hub.address`); or, for loose files, lists of paths.
        images: the approximate number of images, by what the data says of itself, else by the first shard; None if
            unknown.
        revision: the hub's commit, or a fingerprint of the files.
        on_hub: they are a hub's.
    """

    units: tuple[str | tuple[str, ...], ...]
    images: int | None
    revision: str = ""
    on_hub: bool = False

    @property
    def remote_shards(self) -> int | None:
        """How many shards come over the network; None where reading a part of one does not cost all of it.

        The same whether the cache holds them or not, so that a run does not depend on that."""
        return len(self.units) if self.on_hub else None

    def epoch(
        self, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> datasets.IterableDataset:
        """One of `lanes` shares of an epoch, from its beginning or from the token of an earlier block.

        Each epoch deals the units out in another order. If there are fewer units than lanes, several lanes share each
        unit."""
        parts = -(-lanes // len(self.units))
        pieces = [(unit, part, parts) for unit in self.units for part in range(parts)]
        order = np.random.default_rng([seed, epoch]).permutation(len(pieces))
        mine = tuple(pieces[index] for index in order[lane::lanes])
        start = token or dict.fromkeys(PLACE, 0)
        return datasets.IterableDataset.from_generator(
            read_pieces, features=FEATURES, gen_kwargs={"pieces": mine, **start}
        )

    def blocks(
        self, size: int, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> Iterator[tuple[Block, dict]]:
        """`epoch` in blocks of `size` rows, each with the token of what comes after it."""
        for block in self.epoch(seed, epoch, lane, lanes, token).iter(size):
            yield block, {name: block[name][-1] for name in PLACE}


@dataclass(frozen=True)
class TableSource:
    """Any other streamed HF data set with an image column; attributes as `FileSource`.

    Attributes:
        name: as it was given, for messages.
    """

    dataset: datasets.IterableDataset
    images: int | None
    revision: str = ""
    name: str = ""

    @property
    def remote_shards(self) -> int | None:
        return self.dataset.num_shards

    def epoch(
        self, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> datasets.IterableDataset:
        """One of `lanes` shares of an epoch, its shards in random order, from its beginning or a token.

        Each shard goes to one lane, or, if there are fewer shards than lanes, to as few lanes as can be."""
        epoch_seed = int(np.random.default_rng([seed, epoch]).integers(2**31))
        # A buffer of one: shuffles the shards alone; the reader shuffles the images.
        dataset, shards = self.dataset.shuffle(epoch_seed, buffer_size=1), self.dataset.num_shards
        if lanes <= shards:
            dataset = dataset.shard(lanes, lane)
        else:
            shard, part = lane % shards, lane // shards
            sharing = len(range(shard, lanes, shards))
            dataset = dataset.shard(shards, shard)
            if sharing > 1:
                dataset = split_dataset_by_node(dataset, part, sharing)
        if token is not None:
            if "rows" not in token:
                raise UserError(
                    "the checkpoint was written by an older version, which dealt the rows of a table in another way. "
                    "Begin again in another --output_dir, or with --overwrite_output_dir."
                )
            dataset.load_state_dict(token["rows"])
        return dataset

    def blocks(
        self, size: int, seed: int, epoch: int, lane: int, lanes: int, token: dict | None = None
    ) -> Iterator[tuple[Block, dict]]:
        """`epoch` in blocks of `size` rows, each with the token of what comes after it. After an outage another reader
        begins there.

        Raises:
            UnavailableError: the hub does not answer for the time of `hub.patience`.
        """
        rows: datasets.IterableDataset | None = None
        blocks: Iterator[Block] = iter(())

        def next_block() -> Block | None:
            nonlocal rows, blocks
            if rows is None:
                rows = self.epoch(seed, epoch, lane, lanes, token)
                blocks = rows.iter(size)
            try:
                return next(blocks, None)
            except BaseException:
                rows = None
                raise

        while (block := patiently(f"--train_data {self.name!r}", next_block)) is not None:
            assert rows is not None
            token = {"rows": rows.state_dict()}
            yield block, token


Source = FileSource | TableSource
