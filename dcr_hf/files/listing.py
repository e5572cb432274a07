"""The files below a folder: through links, without what programs leave behind."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_DEBRIS = {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found"}


def is_debris(path: str) -> bool:
    """True for hidden files and folders, and for what archives and file managers leave: never data.

    Args:
        path: below the data's own folder, or in an archive.
    """
    return any(
        part.startswith(".") or part in _DEBRIS for part in PurePosixPath(path).parts if part not in (".", "..")
    )


def files_below(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """All files below a folder in the order of their names, linked folders included; a link back up is not followed.

    Links to nothing and unreadable files are among them: whoever reads them says so. Debris is not.

    Args:
        suffixes: in lower case; by default any.
    """
    found = _walk(folder, frozenset())
    return sorted(path for path in found if suffixes is None or path.suffix.lower() in suffixes)


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_debris(entry.name):
                continue
            if entry.is_dir():  # follows links
                yield from _walk(Path(entry.path), above | {identity})
            else:
                yield Path(entry.path)
