"""Write, read and merge a run's folder: results.json, predictions/*.jsonl, the report's maps and thumbnails."""

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
        predictions: rows of encoder, benchmark, set, path; and feature and seeds, or, for a multimodal model in the
            encoder's place, items and unparsed.
        maps: rows of encoder, set, feature, path.
        thumbnails: folders of small MMVP images.
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
    """Read a results.json, or the one in a folder.

    Raises:
        NotFoundError: there is none.
        UserError: not a results.json of ours.
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
    """Merge runs, except `results` and `comparisons`, which follow from the predictions.

    Encoders with the same name, weights, image processor and dtype are one encoder; the first run's predictions win.
    A different encoder under a known name gets its run's folder appended to its name.
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
    """Write a file atomically."""
    with writes_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)


@contextlib.contextmanager
def writes_to(folder: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk or missing permission, into a WriteError that names the folder.

    Wrap only code that writes.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror or error}.") from error


def slug(*parts: str) -> str:
    """A file name from names."""
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: str | Path) -> list[dict]:
    with as_user_error(f"predictions in {path}", OSError, json.JSONDecodeError, UnicodeDecodeError):
        with Path(path).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
