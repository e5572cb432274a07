"""The benchmarks by name: their sets, readers, predictions and scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_hf.errors import UserError
from dcr_hf.evaluation.readers.image_sets import ImageSet
from dcr_hf.evaluation.readers.mmvp import read_mmvp
from dcr_hf.evaluation.readers.shards import read_captioned, read_labeled
from dcr_hf.evaluation.readers.splits import read_train_and_test
from dcr_hf.evaluation.report.published import MMVP_SET
from dcr_hf.evaluation.scoring.scores import (
    Scored,
    score_classes,
    score_clusters,
    score_pairs,
    score_probe,
    score_retrieval,
)
from dcr_hf.evaluation.tasks.clustering import predict_clusters
from dcr_hf.evaluation.tasks.linear_probe import predict_probe
from dcr_hf.evaluation.tasks.mmvp import predict_pairs
from dcr_hf.evaluation.tasks.retrieval import predict_retrieval
from dcr_hf.evaluation.tasks.zeroshot import check_prompts, predict_classes

# The paper's six sets; CIFAR-100 is CLIP_benchmark's.
CLUSTERED = {
    "mnist": "clip-benchmark/wds_mnist",
    "cifar10": "clip-benchmark/wds_vtab-cifar10",
    "imagenet1k": "clip-benchmark/wds_imagenet1k",
    "caltech101": "clip-benchmark/wds_vtab-caltech101",
    "dtd": "clip-benchmark/wds_vtab-dtd",
    "eurosat": "clip-benchmark/wds_vtab-eurosat",
}
CLASSIFIED = {**CLUSTERED, "cifar100": "clip-benchmark/wds_vtab-cifar100"}
CAPTIONED = {"flickr30k": "clip-benchmark/wds_flickr30k", "mscoco_captions": "clip-benchmark/wds_mscoco_captions"}


def _anything(data: ImageSet) -> None:
    """Any set will do."""


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is run on one set.

    Attributes:
        sets: hub id by name; all of them run unless one is named.
        read: (name, hub id or None, data root or None) -> the set.
        predict: (embeddings, set, feature kind, seeds) -> one JSON-able row per item.
        score: (set name, rows) -> scores.
        check: raises a UserError for a set that this benchmark cannot use.
        needs_text: True if the encoder must have a text tower.
    """

    sets: Mapping[str, str]
    read: Callable[[str, str | None, Path | None], ImageSet]
    predict: Callable[..., list[dict]]
    score: Callable[[str, list[dict]], Scored]
    needs_text: bool = True
    check: Callable[[Any], None] = _anything


BENCHMARKS = {
    "mmvp_vlm": Benchmark({MMVP_SET: "MMVP/MMVP_VLM"}, read_mmvp, predict_pairs, score_pairs),
    "clustering": Benchmark(CLUSTERED, read_labeled, predict_clusters, score_clusters, needs_text=False),
    "zeroshot": Benchmark(CLASSIFIED, read_labeled, predict_classes, score_classes, check=check_prompts),
    "linear_probe": Benchmark(CLASSIFIED, read_train_and_test, predict_probe, score_probe, needs_text=False),
    "retrieval": Benchmark(CAPTIONED, read_captioned, predict_retrieval, score_retrieval),
}


def parse_benchmarks(names: list[str], data_root: Path | None) -> list[tuple[str, str]]:
    """`clustering`, `clustering:dtd` ... -> unique (benchmark, set) pairs. A folder of DATA_ROOT is also a set.

    Raises:
        UserError: unknown benchmark or set; lists the known ones.
    """
    chosen = []
    for name in names:
        benchmark, _, dataset = name.partition(":")
        if benchmark not in BENCHMARKS:
            raise UserError(f"unknown benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
        known = BENCHMARKS[benchmark].sets
        if dataset and dataset not in known and not (data_root and (data_root / dataset).is_dir()):
            raise UserError(
                f"unknown set {dataset!r} of benchmark {benchmark}; known: {', '.join(known)}, or the name of a "
                f"folder below --data_root ({data_root or 'not given'})."
            )
        chosen += [(benchmark, each) for each in ([dataset] if dataset else known)]
    return list(dict.fromkeys(chosen))


def read_sets(chosen: list[tuple[str, str]], data_root: Path | None) -> dict[tuple[str, str], ImageSet]:
    """The data of each (benchmark, set). Data shared by two benchmarks is read once.

    Raises:
        NotFoundError, UserError: a set is missing or broken; the message names it.
    """
    read: dict[tuple, ImageSet] = {}
    for name, each in chosen:
        benchmark = BENCHMARKS[name]
        if (benchmark.read, each) not in read:
            read[benchmark.read, each] = benchmark.read(each, benchmark.sets.get(each), data_root)
    for name, each in chosen:
        BENCHMARKS[name].check(read[BENCHMARKS[name].read, each])
    return {(name, each): read[BENCHMARKS[name].read, each] for name, each in chosen}
