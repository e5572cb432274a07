"""The command line of recipes/evaluate.py."""

import argparse
import logging
import os
from pathlib import Path
from typing import get_args

import torch
from accelerate import PartialState
from huggingface_hub.constants import HF_HOME

from dcr_hf.errors import OneLineParser, exit_on_user_error
from dcr_hf.evaluation.arguments import add_hub_options, named_paths, not_negative, positive, use_hub_options
from dcr_hf.evaluation.benchmarks import BENCHMARKS
from dcr_hf.evaluation.embedding.encoders import DTYPES, Preprocess
from dcr_hf.evaluation.plan import prepare
from dcr_hf.evaluation.report.summary import make_tables
from dcr_hf.evaluation.report.table import markdown
from dcr_hf.evaluation.run import compare_runs, execute
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.files import check_writable, user_path

FEATURES = ("auto", "projected", "pooled", "mean_patch")


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, or merge earlier runs; print the tables and the paths of the files."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    # Under torchrun on CPUs accelerate joins the processes only with cpu=True.
    PartialState(cpu=not torch.accelerator.is_available())
    with exit_on_user_error():
        use_hub_options(options)
        results = _compare(parser, options) if options.compare else _evaluate(parser, options)
    if results is not None:
        print(markdown(make_tables(results)))
        print(f"Written: {options.output_dir}/results.json, results.md, report.html, predictions/")


def _evaluate(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Results | None:
    for name in ("encoders", "benchmarks"):
        if not getattr(options, name):
            parser.error(f"--{name} is needed (or --compare with results of earlier runs)")
    if options.data_root and not options.data_root.is_dir():
        parser.error(f"--data_root {options.data_root} is not a folder")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        parser.error(f"--seeds {' '.join(map(str, options.seeds))}: give each once, none negative")
    encoders = named_paths(parser, "--encoders", options.encoders)
    for name in ("output_dir", "cache_dir"):  # fail now, not after hours
        check_writable(f"--{name}", getattr(options, name))
    return execute(
        prepare(encoders, options.benchmarks, options.data_root, options.feature, options.dtype, options.preprocess),
        output_dir=options.output_dir,
        cache_dir=options.cache_dir,
        seeds=tuple(options.seeds),
        batch_size=options.batch_size,
        workers=options.workers,
    )


def _compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Results | None:
    if options.encoders or options.benchmarks:
        parser.error("--compare merges earlier runs; --encoders and --benchmarks cannot be combined with it")
    if not PartialState().is_main_process:
        return None
    return compare_runs(options.compare, options.output_dir)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description="Measure CLIP-family encoders.",
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        metavar="NAME=FOLDER_OR_ID",
        help="CLIP or SigLIP folders or hub ids, or stage-2 checkpoints, to measure; the first is the reference",
    )
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME[:SET]",
        help="benchmarks to run, all sets or one: "
        + "; ".join(f"{name} ({', '.join(each.sets)})" for name, each in BENCHMARKS.items()),
    )
    parser.add_argument(
        "--compare", nargs="+", type=user_path, metavar="RESULTS", help="merge these results.json of earlier runs"
    )
    parser.add_argument("--data_root", type=user_path, help="folder of local data sets; missing ones are downloaded")
    parser.add_argument("--output_dir", type=user_path, required=True, help="folder for the report")
    parser.add_argument("--cache_dir", type=user_path, default=Path(HF_HOME) / "dcr_hf", help="cache of embeddings")
    parser.add_argument(
        "--feature",
        choices=FEATURES,
        default="auto",
        help="image feature for clustering and linear probes; auto: the joint space",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of k-means")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="dtype of the encoder")
    parser.add_argument(
        "--preprocess",
        choices=get_args(Preprocess),
        default="processor",
        help="processor: the checkpoint's image processor; original: the same with the centre crop of OpenAI's own "
        "transform, for a CLIP",
    )
    parser.add_argument("--batch_size", type=positive, default=64, help="images per forward pass")
    parser.add_argument(
        "--workers", type=not_negative, default=min(8, os.cpu_count() or 1), help="decoding processes per device"
    )
    add_hub_options(parser)
    return parser
