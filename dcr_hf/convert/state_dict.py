"""The weights of a CLIP in OpenAI's format, found in a file of any layout; no code of the file runs."""

import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.models.reading import TORCH_FILE_ERRORS

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a CLIP in a `.pt`, `.pth` or `.safetensors` file, under OpenAI's names; runs no code of the file.

    The CLIP may lie anywhere in a larger model (DIVA saves its complete trainer), and the vision tower may lie there
    alone, without `visual.` (as un2CLIP saves it).

    Raises:
        NotFoundError: no such file.
        UserError: a TorchScript archive, a pickle of more than tensors, or not one CLIP with a vision transformer.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}: give OpenAI-format CLIP weights, a .pt state dict.")
    content = _unwrapped(path)
    content, prefix, bare = _clip_inside(path, content)
    named = {f"visual.{name}" if bare else name: value for name, value in content.items()}
    if "visual.conv1.weight" not in named or "visual.proj" not in named:
        raise UserError(
            f"{path} has no {prefix}visual.proj of a vision transformer in OpenAI's format; its first names are "
            f"{', '.join(list(named)[:4])}."
        )
    return {name: value.float() for name, value in named.items() if name.split(".")[-1] not in _IGNORED}


def _unwrapped(path: Path) -> dict[str, Tensor]:
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: a broken download? Fetch it again.")
    if path.suffix == ".safetensors":
        with as_user_error(str(path), OSError, SafetensorError):
            return load_file(path)
    if _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which holds code and is not opened. What OpenAI publishes so "
            "is on the hub, openai/clip-vit-*. Of another one that you trust, save the weights alone: "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except TORCH_FILE_ERRORS as error:
        raise UserError(
            f"{path} is not a plain state dict, or is damaged ({type(error).__name__}); other files are not opened, "
            "since they may hold code. Save the weights alone: torch.save(model.state_dict(), FILE)."
        ) from None
    while isinstance(content, dict) and (wrapper := next((name for name in _WRAPPERS if name in content), None)):
        content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds {type(content).__name__}, not a dictionary of tensors (a state dict).")
    return content


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _clip_inside(path: Path, content: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, bool]:
    """The CLIP's own weights, without the prefix that they have in the file; that prefix; whether it is the vision
    tower alone."""
    prefixes = _before(content, "visual.conv1.weight")
    bare = not prefixes
    if bare:
        prefixes = _before(content, "class_embedding")
    if len(prefixes) != 1:
        found = f"{len(prefixes)} CLIPs, at {', '.join(prefixes[:3])}" if prefixes else "none"
        raise UserError(
            f"{path}: the weights of one CLIP with a vision transformer, in OpenAI's format, are wanted "
            f"(visual.conv1.weight ...); found {found}. Its first names are {', '.join(list(content)[:4])}."
        )
    prefix = prefixes[0]
    inside = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
    return inside, prefix, bare


def _before(content: dict[str, Tensor], end: str) -> list[str]:
    """What stands before `end` in the names that end with it, up to a dot."""
    return [name.removesuffix(end) for name in content if name == end or name.endswith(f".{end}")]
