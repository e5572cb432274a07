"""Fingerprints: what a local folder or list of files is, for the purpose for which the hub has commits."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

# Small files whose contents say what a model is; of larger ones, name and size.
_READ = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = (".safetensors", ".bin")
_SMALL = 2**20
# Above this many files their sizes are not asked: on a network disk that takes minutes.
_MANY = 100_000


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder in the order of their names: its own, and those of its parts, one folder down.

    What lies deeper is no model's: the folder may also hold a run, or data."""
    return sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())


def fingerprint_of_model(folder: Path) -> str:
    """'12 files, 3,456 bytes, 0a1b2c3d4e5f' of what is loaded: names, sizes, contents of small configurations. Not
    when they were written: a copy is the same."""
    files = [path for path in model_files(folder) if path.suffix in _READ + _WEIGHTS]
    return fingerprint_of_files(files, "files", folder)


def fingerprint_of_files(files: Iterable[Path], what: str, root: Path | None = None) -> str:
    """'12 shards, 3,456 bytes, 0a1b2c3d4e5f' of these files.

    Args:
        what: what they are called in it.
        root: the folder from which they are named; by default each by its own name, wherever it is.
    """
    files = sorted(files)
    digest, total, sizes = hashlib.sha256(), 0, len(files) <= _MANY
    for path in files:
        name = path.relative_to(root) if root else path.name
        size = path.stat().st_size if sizes and path.exists() else 0
        digest.update(f"{name}\0{size}\n".encode())
        if path.suffix in _READ and size < _SMALL:
            digest.update(path.read_bytes())
        total += size
    return f"{len(files):,} {what}, {f'{total:,} bytes, ' if sizes else ''}{digest.hexdigest()[:12]}"
