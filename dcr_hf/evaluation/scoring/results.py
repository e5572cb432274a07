"""A run's folder: results.json, predictions/*.jsonl, and the report's maps and thumbnails. Written, read, merged."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dcr_hf.errors import NotFoundError, UserError, WriteError, as_user_error

FORMAT = 1
_FIELDS = ("results", "comparisons", "encoders", "data", "predictions", "maps", "thumbnails", "runs")


@dataclass
class Results:
    """One run, or several merged. Paths are absolute here and relative to results.json in the file.

    Attributes:
        results: rows of encoder, benchmark, dataset, metric, value, n, low, high, interval, ...
        comparisons: rows of encoder, reference, benchmark, dataset, metric, difference, low, high (its interval),
            p, test, noise.
        encoders: facts by name (path, hashes, dtype), in the order they were given: the first is the reference.
        data: facts by set name (source, revision, items).
        predictions: rows of encoder, benchmark, set, path; feature and seeds, or items and unparsed of a multimodal
            model, which stands where an encoder does.
        maps: rows of encoder, set, feature, path.
        thumbnails: folders with the MMVP images, small.
        runs: command, dtype, seeds, versions, time of each run.
    """

    results: list[dict] = field(default_factory=list)
    comparisons: list[dict] = field(default_factory=list)
    encoders: dict[str, dict] = field(default_factory=dict)
    data: dict[str, dict] = field(default_factory=dict)
    predictions: list[dict] = field(default_factory=list)
    maps: list[dict] = field(default_factory=list)
    thumbnails: list[str] = field(default_factory=list)
    runs: list[dict] = field(default_factory=list)

    def write(self, output_dir: Path) -> None:
        content = {"format": FORMAT, **{name: getattr(self, name) for name in _FIELDS}}
        for name in ("predictions", "maps"):
            content[name] = [{**row, "path": os.path.relpath(row["path"], output_dir)} for row in content[name]]
        content["thumbnails"] = [os.path.relpath(folder, output_dir) for folder in self.thumbnails]
        write_text(output_dir / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> Results:
    """A results.json, or the folder that holds one.

    Raises:
        NotFoundError: there is none.
        UserError: not a file that this program wrote.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"no results at {path}: give a results.json that recipes/evaluate.py wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, this program reads {FORMAT}.")
        read = Results(**{name: content[name] for name in _FIELDS})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no results.json of recipes/evaluate.py: {error!r}") from None
    for row in (*read.predictions, *read.maps):
        row["path"] = str(path.parent / row["path"])
    read.thumbnails = [str(path.parent / folder) for folder in read.thumbnails]
    return read


def merge(paths: list[Path]) -> Results:
    """Several runs as one, but for `results` and `comparisons`: these follow from the predictions.

    Encoders of one name and the same weights, image processor and dtype are one encoder, and what several runs
    measured of it is taken from the first. Where another has a name that is taken, its run's folder is added to it.
    """
    merged = Results()
    for path in paths:
        run = read_results(path)
        names = {}
        for encoder, facts in run.encoders.items():
            taken = merged.encoders.get(encoder)
            same = taken is None or _content(taken) == _content(facts)
            names[encoder] = encoder if same else f"{encoder} ({path.parent.name if path.is_file() else path.name})"
            merged.encoders.setdefault(names[encoder], facts)
        for field_name, identity in (
            ("predictions", ("encoder", "benchmark", "set")),
            ("maps", ("encoder", "set")),
        ):
            rows = getattr(merged, field_name)
            known = {tuple(row[part] for part in identity) for row in rows}
            renamed = [{**row, "encoder": names[row["encoder"]]} for row in getattr(run, field_name)]
            rows += [row for row in renamed if tuple(row[part] for part in identity) not in known]
        merged.data = {**run.data, **merged.data}
        merged.thumbnails += run.thumbnails
        merged.runs += run.runs
    return merged


def _content(facts: dict) -> dict:
    return {part: value for part, value in facts.items() if part not in ("path", "base")}


def write_text(path: Path, text: str) -> None:
    """All of it or nothing: a reader never sees half a file."""
    with writes_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)


@contextlib.contextmanager
def writes_to(folder: Path) -> Iterator[None]:
    """Turn what the operating system says of a disk that is full or a folder that cannot be written into a WriteError.

    Only for code that writes and reads nothing of the user's.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror or error}.") from error


def slug(*parts: str) -> str:
    """Names as a file name."""
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def write_rows(path: Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: str | Path) -> list[dict]:
    with as_user_error(f"predictions in {path}", OSError, json.JSONDecodeError, UnicodeDecodeError):
        with Path(path).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
