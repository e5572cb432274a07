"""One run at a time in a folder: a second one would delete what the first is writing."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# A killed run's loaders outlive it by a few seconds, and hold its lock.
PATIENCE = 10.0


@contextlib.contextmanager
def occupying(folder: str | os.PathLike, first: bool = True) -> Iterator[None]:
    """Hold `folder` for the time inside; the operating system gives it back, however the process ends.

    Args:
        folder: made if it is not there. The lock is its file `.lock`.
        first: whether this is the first of the run's processes; the others hold nothing.

    Raises:
        BlockingIOError: another run holds it still, after PATIENCE seconds.
    """
    if not first:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise BlockingIOError(
            f"another run is at work in {folder}. Wait for its end, or choose another --output_dir."
        ) from None
    try:
        yield
    finally:
        lock.release()
