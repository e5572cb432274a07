"""Training examples: a conversation's tokens and its image, padded to a square; batches of them, and their order."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import LlavaProcessor

from dcr_hf.data.bad_images import SkipWindow
from dcr_hf.data.images import BadImageError, decode_image
from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.llava.conversations import (
    IGNORED,
    Piece,
    WordTokenizer,
    caption_pieces,
    conversation_pieces,
    encode,
)

_LOOKED_AT = 100  # images, before a run begins


class Examples(Dataset):
    """Rows of `records.FEATURES` -> {"input_ids": [...], "labels": [...], "pixel_values": (3, S, S) or None,
    "skipped": [(reason, id), ...]}.

    A row that cannot be used is left out and counted, and the next one of its modality is used instead, so that the
    order of all others, and of a resumed run, does not change.

    Args:
        records: see `read_records`.
        images: the folder that image paths begin from.
        processor: of images and tokens; its image processor is used as it is.
        image_tokens: tokens of an image.
        max_length: tokens of an example; the rest is cut off.
        max_bad_fraction, option: see `SkipWindow`.
    """

    def __init__(
        self,
        records: datasets.Dataset,
        images: str | None,
        processor: LlavaProcessor,
        image_tokens: int,
        max_length: int,
        max_bad_fraction: float,
        option: str,
    ):
        self.records = records
        self.images = Path(images).expanduser() if images else None
        self.processor = processor
        self.image_tokens = image_tokens
        self.max_length = max_length
        self.lengths: list[int] = list(records["length"])
        self.option = option
        self._window = SkipWindow(max_bad_fraction, option)
        self._tokenize = WordTokenizer(processor.tokenizer)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        skipped = []
        for candidate in self._from(index):
            row = self.records[candidate]
            try:
                example = self._example(row)
            except BadImageError as error:
                skipped.append((str(error), row["id"]))
                self._window.add_bad(*skipped[-1])
            else:
                self._window.add_usable()
                return {**example, "skipped": skipped}
        raise UserError(
            f"none of {len(skipped)} conversations like {self.records[index]['id']!r} can be used; the first: "
            f"{skipped[0][0]}. Are {self.option} and --model_max_length right?"
        )

    def _from(self, index: int) -> Iterator[int]:
        """This row, and then the others of its modality."""
        has_image = self.lengths[index] > 0
        for candidate in chain(range(index, len(self)), range(index)):
            if (self.lengths[candidate] > 0) == has_image:
                yield candidate

    def _example(self, row: dict) -> dict:
        image_token = self.processor.image_token_id
        ids, labels = encode(self.pieces(row), self._tokenize, image_token, self.image_tokens, self.max_length)
        if all(label == IGNORED for label in labels):
            raise BadImageError("no answer within the length")
        pixels = None
        if row["image"] is not None:
            if ids.count(image_token) != self.image_tokens:
                raise BadImageError("image beyond the length")
            pixels = self._pixels(row["image"])
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}

    def pieces(self, row: dict) -> list[Piece]:
        """What a row says, in the template of its stage."""
        if not row["questions"]:
            return caption_pieces(row["answers"][0])
        end = self.processor.tokenizer.eos_token
        return conversation_pieces(row["questions"], row["answers"], end, has_image=row["image"] is not None)

    def _pixels(self, name: str) -> Tensor:
        try:
            content = Path(self.images or "", name).read_bytes()
        except OSError as error:
            raise BadImageError("missing") from error
        return self.processor.image_processor(decode_image(content), return_tensors="pt").pixel_values[0]


def check_images(records: datasets.Dataset, images: str | None, option: str) -> None:
    """Raise if a data set with images has no folder for them, or the wrong one.

    Raises:
        UserError: no folder given.
        NotFoundError: no such folder, or none of the first images is in it.
    """
    named = [name for name in records["image"] if name is not None][:_LOOKED_AT]
    if not named:
        return
    if images is None:
        raise UserError(f"--{option} is needed: the folder that image paths such as {named[0]!r} begin from.")
    folder = Path(images).expanduser()
    if not folder.is_dir():
        raise NotFoundError(f"--{option} {images!r} is no folder.")
    if not any((folder / name).is_file() for name in named):
        raise NotFoundError(
            f"--{option} {images!r} holds none of the first {len(named)} images, such as {named[0]!r}. Give the "
            "folder that these paths begin from."
        )


def collate(pad_token_id: int) -> Callable[[list[dict]], dict]:
    """Items of `Examples` -> a batch: tokens and labels padded on the right, the images of those that have one."""

    def batch(items: list[dict]) -> dict:
        width = max(len(item["input_ids"]) for item in items)
        ids, labels, mask = (torch.full((len(items), width), fill) for fill in (pad_token_id, IGNORED, 0))  # (B, T)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            ids[row, :length] = torch.tensor(item["input_ids"])
            labels[row, :length] = torch.tensor(item["labels"])
            mask[row, :length] = 1
        images = [item["pixel_values"] for item in items if item["pixel_values"] is not None]
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "pixel_values": torch.stack(images) if images else None,  # (images, 3, S, S)
            "skipped": [entry for item in items for entry in item["skipped"]],
        }

    return batch


class RandomOrder(Sampler[int]):
    """A new order each epoch, which seed and epoch alone decide: a resumed run finds it again.

    Args:
        lengths: of each example; negative where there is no image.
        batch_size: of a batch.
        batches: that one optimizer step takes, on all devices.
        seed: with the epoch it gives the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, batches: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(len(self), generator=self._generator()).tolist()

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + self._epoch)


class LengthGroups(RandomOrder):
    """LLaVA's order: what one optimizer step takes is of one modality, and its batches are about equally long."""

    def __iter__(self) -> Iterator[int]:
        generator = self._generator()
        step = self.batch_size * self.batches
        full, rest = [], []
        for wanted in (True, False):
            indices = [index for index, length in enumerate(self.lengths) if (length > 0) == wanted]
            order = [indices[position] for position in torch.randperm(len(indices), generator=generator).tolist()]
            groups = [order[start : start + step] for start in range(0, len(order), step)]
            if groups and len(groups[-1]) < step:
                rest += groups.pop()
            full += groups
        full = [full[index] for index in torch.randperm(len(full), generator=generator).tolist()]
        # What is left of both modalities comes last, where a batch may be smaller than the others.
        full += [rest[start : start + step] for start in range(0, len(rest), step)]
        yield from chain.from_iterable(self._even(group) for group in full)

    def _even(self, group: list[int]) -> list[int]:
        """One step's examples, dealt to its batches so that these are about equally long."""
        longest_first = sorted(group, key=lambda index: -abs(self.lengths[index]))
        if len(group) < self.batch_size * self.batches:
            return longest_first
        batches: list[list[int]] = [[] for _ in range(self.batches)]
        for index in longest_first:
            open_batches = [batch for batch in batches if len(batch) < self.batch_size]
            min(open_batches, key=lambda batch: sum(abs(self.lengths[i]) for i in batch)).append(index)
        return list(chain.from_iterable(batches))
