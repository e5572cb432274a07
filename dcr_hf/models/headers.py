"""Names and type of a model's weights, from an index or the beginning of a file: on the hub nothing else is read."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import SafetensorsParsingError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcr_hf.errors import UserError, as_user_error
from dcr_hf.hub import check_weights, local_folder, patiently, pin
from dcr_hf.models.reading import TORCH_FILE_ERRORS, read_config, read_json

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Header:
    """Names of all weights; the type of the first."""

    names: frozenset[str]
    dtype: torch.dtype


def read_header(path_or_id: str, what: str) -> Header:
    """The header of the weights that would be loaded. Of pickled files on the hub the type is config.json's.

    Raises:
        NotFoundError: no weights.
        UserError: an index or file that is broken.
    """
    who, weights = f"{what} {path_or_id!r}", check_weights(path_or_id, what=what)
    shards = [name for name in weights.files if not name.endswith(".json")]
    names: frozenset[str] | None = None
    for index in set(weights.files) - set(shards):
        file = local_folder(path_or_id, [index], what) / index
        weight_map = read_json(who, file).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{who}: {file} has no weight_map: it is no index of weights.")
        names, missing = frozenset(weight_map), sorted(set(weight_map.values()) - set(shards))
        if missing:
            raise UserError(f"{who} is incomplete: {index} names {', '.join(missing)}, not found.")
    folder = Path(path_or_id).expanduser()
    if weights.safetensors:
        read = _local(who, folder / shards[0]) if folder.is_dir() else _remote(who, path_or_id, shards[0])
        return Header(names or read.names, read.dtype)
    if names is None or folder.is_dir():
        file = (folder if folder.is_dir() else local_folder(path_or_id, shards[:1], what)) / shards[0]
        tensors = read_pickled(who, file)
        return Header(names or frozenset(tensors), next(iter(tensors.values())).dtype)
    declared = read_config(who, local_folder(path_or_id, what=what)).dtype
    return Header(names, declared if isinstance(declared, torch.dtype) else torch.float32)


def read_pickled(who: str, file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, mapped and not copied where its format allows.

    Raises:
        UserError: it holds something else, or is broken.
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except TORCH_FILE_ERRORS as error:  # torch's own message advises to load it without that protection
        raise UserError(
            f"{who}: {file} is no file of tensors, or is cut off or damaged ({type(error).__name__}). Files that hold "
            "anything else are not opened, since they may hold code. Download it again, or give safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{who}: {file} holds a {type(tensors).__name__}; the tensors of a model by name are wanted.")
    return tensors


def _local(who: str, file: Path) -> Header:
    with as_user_error(f"{who}: {file}", OSError, SafetensorError), safe_open(file, framework="pt") as weights:
        names = frozenset(weights.keys())
        return Header(names, weights.get_tensor(min(names)).dtype)


def _remote(who: str, given: str, name: str) -> Header:
    found = pin(who, given)
    with as_user_error(f"{who}: {name}", SafetensorsParsingError):
        read = patiently(
            f"{who}: {name}",
            lambda: HfApi().parse_safetensors_file_metadata(found.repository, name, revision=found.commit),
        )
    first = read.tensors[min(read.tensors)].dtype
    return Header(frozenset(read.tensors), _TYPES.get(first, torch.float32))
