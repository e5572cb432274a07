"""A file of a repository at a commit, read as it comes, without a copy on disk."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from dcr_hf.errors import as_user_error
from dcr_hf.hub.answers import explained_at_commit
from dcr_hf.hub.patience import TIMEOUT, patiently
from dcr_hf.hub.pins import Pin

_CHUNK = 2**18
PREFIX = "hub://"


def address(found: Pin, name: str) -> str:
    """How a file of a pinned data set is named where a path may stand too: hub://owner/name@commit/file."""
    return f"{PREFIX}{found.repository}@{found.commit}/{name}"


def is_address(path: str) -> bool:
    """True for an `address`, false for a path."""
    return path.startswith(PREFIX)


def open_file(path_or_address: str, offset: int = 0) -> BinaryIO:
    """A local path, or an `address`, from byte `offset` on.

    Raises:
        UserError: a local file that cannot be opened.
    """
    if is_address(path_or_address):
        return io.BufferedReader(RemoteFile(path_or_address, offset), _CHUNK)  # type: ignore[return-value]
    with as_user_error(f"shard {path_or_address}", OSError):
        file = Path(path_or_address).open("rb")
        file.seek(offset)
    return file


class RemoteFile(io.RawIOBase):
    """One request, from `offset` to the end; where the connection breaks, another one from the byte that is missing.

    No API of the hub is asked: the commit is known.

    Args:
        address: see `address`.
        offset: the first byte.

    Raises:
        UnavailableError: while reading, when the hub does not answer for the time of `patience`.
    """

    def __init__(self, address: str, offset: int = 0):
        owner, name, path = address.removeprefix(PREFIX).split("/", 2)
        name, _, commit = name.partition("@")
        self.address, self.repository = address, f"{owner}/{name}"
        self._url = hf_hub_url(self.repository, path, repo_type="dataset", revision=commit)
        self._at = offset
        self._size: int | None = None
        self._response: Any = None
        self._chunks: Iterator[bytes] = iter(())
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self._rest:
            self._rest = memoryview(patiently(f"shard {self.address}", self._next_chunk))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _next_chunk(self) -> bytes:
        """The next bytes, or none at the end; after a failure the next call connects again where this one was."""
        try:
            if self._response is None:
                if self._size is not None and self._at >= self._size:
                    return b""
                self._connect()
            chunk = next(self._chunks, b"")
            if not chunk and self._size is not None and self._at < self._size:
                raise ConnectionError(f"the connection ended at byte {self._at:,} of {self._size:,}")
        except BaseException:
            self._disconnect()
            raise
        self._at += len(chunk)
        return chunk

    def _connect(self) -> None:
        session, headers = get_session(), build_hf_headers() | {"Accept-Encoding": "identity"}
        if self._at:
            headers["Range"] = f"bytes={self._at}-"
        request = session.build_request("GET", self._url, headers=headers, timeout=TIMEOUT)
        response = session.send(request, stream=True, follow_redirects=True)
        if response.status_code == 416:  # nothing is left after this byte
            response.close()
            self._size = self._at
            return
        self._response = response
        with explained_at_commit(f"shard {self.address}", self.repository):
            hf_raise_for_status(response)
        length = int(response.headers.get("Content-Length") or 0)
        if length:
            self._size = self._at + length
        self._chunks = response.iter_bytes()  # as they come: what a break would lose is asked for again

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response, self._chunks = None, iter(())
