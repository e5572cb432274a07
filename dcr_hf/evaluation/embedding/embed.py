"""Images -> features: decoded and resized in the background while the encoder computes; each process takes a share."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dcr_hf.errors import UserError
from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.evaluation.embedding.store import FeatureStore, key, remember
from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.image_sets import Images, ImageSet


class Embeddings(Protocol):
    """One encoder's embeddings of one set, as a benchmark needs them."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""

    def images(self, kind: str) -> np.ndarray:
        """(N, width), float32, not normalised."""

    def texts(self, texts: list[str]) -> np.ndarray:
        """(N, D), float32, of unit length."""

    def remember(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """`compute()`, cached per encoder and set."""

    def remember_texts(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """As `remember`, for values of the texts alone: they stay valid while the image side is trained."""


class _Pixels(Dataset):
    """Image `index` of a set, decoded and resized; runs in the DataLoader's workers."""

    def __init__(self, images: Images, preprocess: Callable[[Image.Image], Tensor]):
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(decode_image(self.images.read(index), self.images.name(index)))

    def __len__(self) -> int:
        return len(self.images)


def pixel_batches(
    images: Images,
    preprocess: Callable[[Image.Image], Tensor],
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    workers: int,
) -> Iterator[Tensor]:
    """(B, 3, S, S), uint8, of `rows` in their order."""
    return iter(
        DataLoader(
            _Pixels(images, preprocess),
            batch_size=batch_size,
            sampler=rows,
            num_workers=min(workers, -(-len(rows) // batch_size)),
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the default draws from the global RNG and would change a training run
        )
    )


class DiskEmbedder:
    """Embeds sets of images with checkpoints, once: cached below `cache_dir` for later runs and metrics.

    Each process embeds its share of the missing chunks; all must share one `cache_dir`.

    Args:
        keep: bytes of decoded images to hold until `forget`, for other encoders with the same image processor: small
            images cost more to decode than to embed.
    """

    def __init__(self, cache_dir: Path, batch_size: int = 64, workers: int = 2, keep: int = 0):
        self.cache_dir, self.batch_size, self.workers = cache_dir, batch_size, workers
        self._room = keep
        self._decoded: dict[tuple, list[Tensor]] = {}

    def forget(self) -> None:
        """Free the decoded images."""
        self._decoded.clear()

    def embed(self, encoder: PretrainedEncoder, data: ImageSet) -> None:
        """Complete the store of (encoder, data); every process calls it."""
        state = PartialState()
        store = self._store(encoder, data)
        pending = store.pending()
        state.wait_for_everyone()  # no rank writes before all have looked: the shares must not overlap
        self._fill(encoder, data, store, pending, state)
        state.wait_for_everyone()
        if state.is_main_process and not store.is_complete:
            store.finish(encoder=encoder.identity, data=data.title, source=data.source, revision=data.revision)
        state.wait_for_everyone()

    def _fill(
        self,
        encoder: PretrainedEncoder,
        data: ImageSet,
        store: FeatureStore,
        pending: list[range],
        state: PartialState,
    ) -> None:
        """This process's share of the pending rows."""
        mine = pending[state.process_index :: state.num_processes]
        if not mine:
            return
        rows = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in mine])  # a list would grow with the set
        done = (len(data.images) - sum(map(len, pending))) // state.num_processes
        bar = tqdm(
            total=done + len(rows),
            initial=done,
            desc=f"{encoder.name}: {data.title}",
            unit=" images",
            disable=not state.is_main_process,
        )
        waiting: dict[str, np.ndarray] = {}
        with bar:
            for pixels in self._pixels(encoder, data, rows):
                for kind, values in encoder.embed_images(pixels).items():
                    if not np.isfinite(values).all():
                        raise UserError(f"encoder {encoder.name}: {kind} overflows {encoder.dtype}; try float32.")
                    waiting[kind] = np.concatenate([waiting[kind], values]) if kind in waiting else values
                bar.update(len(pixels))
                while mine and len(waiting["mean_patch"]) >= len(mine[0]):
                    chunk = mine.pop(0)
                    store.write(chunk, {kind: values[: len(chunk)] for kind, values in waiting.items()})
                    waiting = {kind: values[len(chunk) :] for kind, values in waiting.items()}

    def _pixels(self, encoder: PretrainedEncoder, data: ImageSet, rows: np.ndarray) -> Iterator[Tensor]:
        """As `pixel_batches`, from memory where they were kept for an encoder before."""
        processing = (encoder.identity["processor"], encoder.identity.get("preprocess"), encoder.processor.image_size)
        which = (*processing, data.title, data.revision, rows.tobytes())
        if which in self._decoded:
            yield from self._decoded[which]
            return
        size = len(rows) * 3 * encoder.processor.image_size**2
        kept: list[Tensor] | None = [] if size <= self._room else None
        self._room -= size if kept is not None else 0
        for pixels in pixel_batches(data.images, encoder.preprocess, rows, self.batch_size, self.workers):
            if kept is not None:
                kept.append(pixels)
            yield pixels
        if kept is not None:  # complete: whoever stops halfway leaves nothing
            self._decoded[which] = kept

    def embeddings(self, encoder: PretrainedEncoder, data: ImageSet) -> "DiskEmbeddings":
        """The embeddings that `embed` completed."""
        return DiskEmbeddings(encoder, self._store(encoder, data))

    def _store(self, encoder: PretrainedEncoder, data: ImageSet) -> FeatureStore:
        identity = {name: value for name, value in encoder.identity.items() if name not in ("path", "base")}
        parts = key(encoder=identity, kinds=encoder.kinds, data=data.title, revision=data.revision)
        return FeatureStore(self.cache_dir / "embeddings" / parts, len(data.images))


class DiskEmbeddings:
    """`Embeddings` of a checkpoint, from its store; texts are embedded on request and not cached."""

    def __init__(self, encoder: PretrainedEncoder, store: FeatureStore):
        self._encoder, self._store = encoder, store

    @property
    def logit_scale(self) -> float:
        return float(self.remember_texts("logit_scale", lambda: np.array(self._encoder.text.logit_scale)))

    def images(self, kind: str) -> np.ndarray:
        return self._store.load(kind)

    def texts(self, texts: list[str]) -> np.ndarray:
        return self._encoder.text.embed(texts)

    def remember(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return remember(self._store.folder / "derived" / f"{name}.npy", compute)

    def remember_texts(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return self.remember(name, compute)


def embed_in_memory(
    embed: Callable[[Tensor], Tensor],
    preprocess: Callable[[Image.Image], Tensor],
    data: ImageSet,
    batch_size: int,
    workers: int,
) -> np.ndarray | None:
    """Embed all images by `embed` (uint8 batch -> (B, D)); gathered on the main process, None on the others.

    Every process runs the same number of equal batches, padded with repeated images: under ZeRO-3 and FSDP a forward
    pass is a collective operation, and an uneven share would hang.
    """
    state = PartialState()
    total = len(data.images)
    share = -(-total // state.num_processes)
    rows = [(state.process_index * share + offset) % total for offset in range(share)]
    batches = pixel_batches(data.images, preprocess, rows, batch_size, workers)
    hidden = not state.is_main_process
    parts = []
    with tqdm(total=share, desc=f"evaluating {data.title}", unit=" images", leave=False, disable=hidden) as bar:
        for pixels in batches:
            parts.append(embed(pixels).float().cpu().numpy())
            bar.update(len(pixels))
    gathered = gather_object([np.concatenate(parts)])
    return np.concatenate(gathered)[:total] if state.is_main_process else None
