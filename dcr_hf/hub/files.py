"""Folders and hub ids: where the files of a model or data set lie, downloaded where they are not here yet."""

import fnmatch
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock
from tqdm.contrib.concurrent import thread_map

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.hub.answers import explained_at_commit
from dcr_hf.hub.fingerprint import model_files
from dcr_hf.hub.patience import passes, patiently
from dcr_hf.hub.pins import Kind, Pin, pin
from dcr_hf.hub.weights import Weights, choose_weights

SIDE_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_AT_ONCE = 8


def local_folder(
    path_or_id: str, patterns: Iterable[str] = SIDE_FILES, what: str = "model", kind: Kind = "model"
) -> Path:
    """The folder itself, or the hub repository's files that match `patterns`, downloaded to the cache.

    Args:
        what: the part or option that names it, for messages.

    Raises:
        NotFoundError: neither a folder nor on the hub.
        UserError: what else the hub says.
        UnavailableError: the hub does not answer.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    found = pin(what, path_or_id, kind)
    fetch(found, [name for name in found.files if _matches(name, patterns)], what, path_or_id)
    return found.folder


def file_names(path_or_id: str, what: str = "model", kind: Kind = "model") -> tuple[str, ...]:
    """The paths of the files of a model's folder or a repository; downloads none. Raises as `local_folder`."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return tuple(str(path.relative_to(folder)) for path in model_files(folder))
    return pin(what, path_or_id, kind).files


def model_folder(path_or_id: str | Path, part: str = "", what: str = "model") -> tuple[Path, Weights]:
    """The folder of a model with its side files and its weights, and which weights these are.

    Args:
        part: the model's folder in the repository: "unet" of a Stable Diffusion.

    Raises:
        NotFoundError: it has no weights; else as `local_folder`.
    """
    given, weights = str(path_or_id), check_weights(str(path_or_id), part, what)
    side = [f"{part}/{pattern}" for pattern in SIDE_FILES] if part else SIDE_FILES
    return local_folder(given, [*side, *weights.files], what), weights


def check_weights(path_or_id: str, part: str = "", what: str = "model") -> Weights:
    """Which weights there are to load; downloads none. Raises as `model_folder`."""
    weights = choose_weights(file_names(path_or_id, what), part)
    if weights is None:
        of_part, folder = (f" of its {part}", f"{part}/") if part else ("", "")
        raise NotFoundError(
            f"{what} {path_or_id!r} lacks weights{of_part}: there is neither {folder}*.safetensors nor {folder}*.bin "
            "under the names that transformers and diffusers give them."
        )
    return weights


def fetch(found: Pin, names: Sequence[str], what: str, given: str) -> None:
    """Download what the cache lacks; of several processes on a machine one downloads, and the others wait."""
    if not _missing(found, names):
        return
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / found.folder.parents[1].name / f"{found.commit}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what} {given!r}: the cache {constants.HF_HUB_CACHE} cannot be written: {error}") from error
    with WeakFileLock(lock):
        missing = _missing(found, names)
        if missing:
            one = partial(_fetch_one, found, what, given)
            thread_map(one, missing, max_workers=_AT_ONCE, desc=f"fetching {given}", disable=len(missing) < 2)


def _missing(found: Pin, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (found.folder / name).is_file()]


def _fetch_one(found: Pin, what: str, given: str, name: str) -> None:
    who = f"{what} {given!r}: {name}"
    try:
        with explained_at_commit(who, given):
            patiently(
                who,
                lambda: hf_hub_download(found.repository, name, repo_type=found.kind, revision=found.commit),
            )
    except LocalEntryNotFoundError as error:
        if passes(error):
            raise
        raise NotFoundError(f"{who} is not in the cache, and the hub cannot be asked: {error}") from error


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
