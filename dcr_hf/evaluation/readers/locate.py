"""Finds a benchmark's files, under --data_root or on the hub, and a revision that changes with them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.files import files_below
from dcr_hf.hub import local_folder, preferred


@dataclass(frozen=True)
class Located:
    """A data set's folder, where it came from, and its revision: the hub's commit or a fingerprint of the files."""

    folder: Path
    source: str
    revision: str


def locate(name: str, hub_id: str | None, data_root: Path | None, patterns: list[str]) -> Located:
    """DATA_ROOT/NAME, or DATA_ROOT/ and the hub name's last part, with or without `wds_`; else download `patterns`.

    Raises:
        NotFoundError: neither there nor on the hub; the message says where it looked.
    """
    last_part = hub_id.split("/")[-1] if hub_id else name
    candidates = list(dict.fromkeys((name, last_part, last_part.removeprefix("wds_"))))
    if data_root is not None:
        for candidate in candidates:
            if (data_root / candidate).is_dir():
                folder = data_root / candidate
                return Located(folder, str(folder), fingerprint(folder))
    looked = " or ".join(str(data_root / each) for each in candidates) if data_root else "no --data_root was given"
    if hub_id is None:
        raise NotFoundError(f"data set {name!r}: no folder {looked}, and no hub data set of this name is known.")
    given = preferred(hub_id)
    try:
        folder = local_folder(given, patterns, f"data set {name!r}, the hub's", "dataset")
    except UserError as error:
        raise NotFoundError(f"data set {name!r}: not found locally ({looked}), and {error}") from error
    return Located(folder, given, folder.name)


def fingerprint(folder: Path) -> str:
    """A hash of every file's relative path, size and modification time, through links: it changes with any file."""
    digest = hashlib.sha256()
    for path in files_below(folder):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
