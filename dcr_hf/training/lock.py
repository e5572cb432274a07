"""Exclusive lock on an output folder: a second run would delete what the first is writing."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dcr_hf.errors import LockedError

# The loader workers of a killed run outlive it by a few seconds, and hold its lock.
PATIENCE = 10.0


@contextlib.contextmanager
def locked(folder: str | os.PathLike, first: bool = True) -> Iterator[None]:
    """Exclusive lock on `folder`, by its file `.lock`; released on exit, however the process ends.

    Args:
        folder: made if it does not exist.
        first: True for the first rank of the run; the others hold nothing.

    Raises:
        LockedError: another run still holds it after PATIENCE seconds.
    """
    if not first:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise LockedError(
            f"another run is at work in {folder}. Wait for its end, or choose another --output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()
