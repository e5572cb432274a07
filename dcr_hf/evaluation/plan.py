"""The plan: encoders x benchmarks, checked and read before anything is computed."""

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from dcr_hf.errors import UserError
from dcr_hf.evaluation.benchmarks import BENCHMARKS, parse_benchmarks, read_sets
from dcr_hf.evaluation.embedding.encoders import Preprocess, PretrainedEncoder
from dcr_hf.evaluation.readers.image_sets import ImageSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One unit of work: this encoder on this set of this benchmark, with this feature."""

    encoder: PretrainedEncoder
    benchmark: str
    data: ImageSet
    feature: str


@dataclass(frozen=True)
class Prepared:
    """A checked evaluation: nothing is computed yet, and bad input has been refused."""

    encoders: list[PretrainedEncoder]
    plans: list[Plan]
    refused: list[str]
    benchmarks: list[str]


def prepare(
    encoders: dict[str, str],
    benchmarks: list[str],
    data_root: Path | None,
    feature: str = "auto",
    dtype: str = "float32",
    preprocess: Preprocess = "processor",
) -> Prepared:
    """Check names, encoders (path or id by name) and data, and read the data's tables.

    Raises:
        UserError, NotFoundError: a wrong name, encoder or set, which the message names; nothing left to run.
    """
    chosen = parse_benchmarks(benchmarks, data_root)
    device = PartialState().device
    loaded = [PretrainedEncoder(name, path, dtype, device, preprocess) for name, path in encoders.items()]
    plans, refused = _make_plans(loaded, chosen, data_root, feature)
    for line in refused:
        logger.warning("refused: %s", line)
    if not plans:
        raise UserError(f"nothing to run: {'; '.join(refused)}.")
    return Prepared(loaded, plans, refused, benchmarks)


def _make_plans(
    encoders: list[PretrainedEncoder], chosen: list[tuple[str, str]], data_root: Path | None, feature: str
) -> tuple[list[Plan], list[str]]:
    """The plans, and the refused combinations by name. Every set is read once."""
    pairs = [(encoder, name, each) for name, each in chosen for encoder in encoders]
    allowed = [pair for pair in pairs if pair[0].has_text or not BENCHMARKS[pair[1]].needs_text]
    refused = [
        f"{name}:{each} for encoder {encoder.name}, which has no text tower"
        for encoder, name, each in pairs
        if (encoder, name, each) not in allowed
    ]
    sets = read_sets(list(dict.fromkeys((name, each) for _, name, each in allowed)), data_root)
    plans = [
        Plan(encoder, name, sets[name, each], "projected" if BENCHMARKS[name].needs_text else encoder.kind(feature))
        for encoder, name, each in allowed
    ]
    return plans, refused
