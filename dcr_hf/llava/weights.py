"""A model folder's weights, read tensor by tensor and written shard by shard, whatever transformers named them."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.models.headers import read_pickled
from dcr_hf.models.reading import read_json

INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")

Read = Callable[[], Tensor]


def canonical(name: str) -> str:
    """One name for a weight of LLaVA in every layout: language_model.*, lm_head.*, vision_tower.* and
    multi_modal_projector.*.

    transformers 4.x writes language_model.model.*, language_model.lm_head.* and vision_tower.vision_model.*; 5.x holds
    model.language_model.*, lm_head.* and model.vision_tower.* in memory, and writes a mixture of both.
    """
    name = name.removeprefix("model.")
    for prefix, short in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, safetensors rather than PyTorch's own.

    Raises:
        NotFoundError: none, or one that the index names is missing.
    """
    found = next((folder / name for name in _SINGLE if (folder / name).is_file()), None)
    if found is None:
        raise NotFoundError(f"{folder} holds no weights: none of {', '.join(_SINGLE)} is in it.")
    if found.suffix != ".json":
        return [found]
    shard_of = read_json("weights", found).get("weight_map")
    if not isinstance(shard_of, dict):
        raise UserError(f"{found} has no weight_map: it is no index of weights.")
    files = sorted(folder / name for name in set(shard_of.values()))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise NotFoundError(f"{folder} is incomplete: {found.name} names {', '.join(missing)}, not found.")
    return files


@contextmanager
def opened(file: Path) -> Iterator[dict[str, Read]]:
    """{name: a function that reads the tensor} of one file; nothing is read before it is called."""
    if file.suffix == ".safetensors":
        with as_user_error(f"{file} is no safetensors file", OSError, SafetensorError):
            opened_file = safe_open(file, framework="pt")
        with opened_file as weights:
            yield {name: partial(weights.get_tensor, name) for name in weights.keys()}
    else:
        tensors = read_pickled("weights", file)
        yield {name: partial(tensors.__getitem__, name) for name in tensors}


class ShardWriter:
    """Writes a folder's weights, each call of `add` a shard; at no time is more than one of them in memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shards: list[dict[str, int]] = []

    def add(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, self._path(len(self._shards)), metadata={"format": "pt"})
            self._shards.append({name: tensor.nbytes for name, tensor in contiguous.items()})

    def finish(self) -> None:
        """Name the shards as transformers does, and write their index."""
        count = len(self._shards)
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, name in enumerate(names):
            self._path(number).replace(self.folder / name)
        index = {
            "metadata": {"total_size": sum(sum(shard.values()) for shard in self._shards)},
            "weight_map": {key: name for name, shard in zip(names, self._shards, strict=True) for key in shard},
        }
        (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[str, Read], dict[str, Tensor]],
    more: Iterable[Callable[[], dict[str, Tensor]]] = (),
) -> None:
    """Write `source`'s weights to `target`, a shard for a shard.

    Args:
        change: what a tensor becomes, by its name on disk and the function that reads it: {name: tensor}, or nothing.
        more: make further shards, written first; each is called when its turn comes.
    """
    writer = ShardWriter(target)
    for make in more:
        writer.add(make())
    for file in weight_files(source):
        with opened(file) as tensors:
            writer.add({name: tensor for key, read in tensors.items() for name, tensor in change(key, read).items()})
    writer.finish()
