"""Hub ids and folders: where a model's files lie."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from dcr_hf.errors import NotFoundError, as_user_error

SIDE_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")


def local_folder(path_or_id: str, patterns: Iterable[str] = SIDE_FILES) -> Path:
    """The folder itself, or the hub repository's files that match `patterns`, downloaded to the cache.

    Raises:
        NotFoundError: neither a folder nor an id.
        UserError: what the hub says, or that it cannot be reached.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise NotFoundError(
            f"{path_or_id!r} is neither a folder here nor a hub id of the form 'owner/name'. "
            "Give the path of a folder that save_pretrained wrote, or an id."
        )
    with as_user_error(f"{path_or_id!r} on the hub", HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return Path(snapshot_download(path_or_id, allow_patterns=list(patterns)))
