"""Embeddings on disk: written in chunks, so that a killed run resumes; read memory-mapped."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dcr_hf.evaluation.scoring.results import writes_to

CHUNK_ROWS = 128


def key(**parts: object) -> str:
    """A folder name that depends on all `parts`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


class FeatureStore:
    """The features of one set's images under one encoder: an array (rows, width) for each kind of feature.

    A chunk file is written atomically, so that its presence records progress: any number of processes, in turn or in
    parallel, complete one store. `finish` joins the chunks into one .npy per kind.
    """

    def __init__(self, folder: Path, rows: int, chunk_rows: int = CHUNK_ROWS):
        self.folder, self.rows, self.chunk_rows = folder, rows, chunk_rows
        self._chunks = folder / "chunks"
        self._record = folder / "complete.json"

    @property
    def is_complete(self) -> bool:
        return self._record.is_file()

    def pending(self) -> list[range]:
        """Row ranges without a chunk."""
        if self.is_complete:
            return []
        starts = range(0, self.rows, self.chunk_rows)
        chunks = [range(start, min(start + self.chunk_rows, self.rows)) for start in starts]
        return [rows for rows in chunks if not self._path(rows).is_file()]

    def write(self, rows: range, features: dict[str, np.ndarray]) -> None:
        """Write the features of `rows`, one of the ranges of `pending`."""
        with writes_to(self._chunks):
            self._chunks.mkdir(parents=True, exist_ok=True)
            unfinished = self._chunks / f".{rows.start}-{os.getpid()}"
            save_file({kind: np.ascontiguousarray(values) for kind, values in features.items()}, unfinished)
            os.replace(unfinished, self._path(rows))

    def finish(self, **facts: object) -> None:
        """Join the chunks, one in memory at a time; `facts` are recorded for people who inspect the cache."""
        chunks = [self._path(range(start, start + 1)) for start in range(0, self.rows, self.chunk_rows)]
        widths = {kind: values.shape[1] for kind, values in load_file(chunks[0]).items()}
        with writes_to(self.folder):
            for kind, width in widths.items():
                unfinished = self.folder / f".{kind}-{os.getpid()}.npy"
                with unfinished.open("wb") as file:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, width)}
                    np.lib.format.write_array_header_1_0(file, header)
                    for chunk in chunks:
                        file.write(load_file(chunk)[kind].astype("<f4").tobytes())
                os.replace(unfinished, self.folder / f"{kind}.npy")
            self._record.write_text(
                json.dumps({"rows": self.rows, "widths": widths, **facts}, indent=1), encoding="utf-8"
            )
            shutil.rmtree(self._chunks)

    def load(self, kind: str) -> np.ndarray:
        """(rows, width), float32, memory-mapped."""
        return np.load(self.folder / f"{kind}.npy", mmap_mode="r")

    def _path(self, rows: range) -> Path:
        return self._chunks / f"{rows.start:09d}.safetensors"


def remember(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array at `path`; computed and stored if it is missing."""
    if not path.is_file():
        values = compute()
        with writes_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{os.getpid()}-{path.name}")
            np.save(unfinished, values)
            os.replace(unfinished, path)
    return np.load(path)
