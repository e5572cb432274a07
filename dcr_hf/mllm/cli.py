"""The command line of recipes/evaluate_mllm.py."""

import argparse
import logging
import os
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub.constants import HF_HOME

from dcr_hf.errors import OneLineParser, exit_on_user_error
from dcr_hf.evaluation.arguments import add_hub_options, named_paths, not_negative, positive, use_hub_options
from dcr_hf.evaluation.embedding.encoders import DTYPES
from dcr_hf.evaluation.report.table import markdown
from dcr_hf.evaluation.scoring.results import writes_to
from dcr_hf.files import user_path
from dcr_hf.mllm.benchmarks import BENCHMARKS, read_benchmarks
from dcr_hf.mllm.model import Llava
from dcr_hf.mllm.run import execute
from dcr_hf.mllm.tables import make_tables


def main(arguments: list[str] | None = None) -> None:
    """Ask, score, report; print the tables and the paths of the files."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.data_root and not options.data_root.is_dir():
        parser.error(f"--data_root {options.data_root} is not a folder")
    paths = named_paths(parser, "--models", options.models)
    # Under torchrun on CPUs accelerate joins the processes only with cpu=True.
    state = PartialState(cpu=not torch.accelerator.is_available())
    automatic = "float32" if state.device.type == "cpu" else "float16"
    dtype = automatic if options.dtype == "auto" else options.dtype
    asking = (options.batch_size, options.workers, options.max_new_tokens)
    with exit_on_user_error():
        use_hub_options(options)
        models = [Llava(name, path, dtype, state.device, *asking) for name, path in paths.items()]
        data = read_benchmarks(options.benchmarks, options.data_root)
        with writes_to(options.output_dir):
            options.output_dir.mkdir(parents=True, exist_ok=True)  # fail now, not after hours
        results = execute(models, data, options.output_dir, options.cache_dir, options.batch_size)
    if results is not None:
        print(markdown(make_tables(results)))
        print(f"Written: {options.output_dir}/results.json, results.md, report.html, unparsed.jsonl, predictions/")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description="Measure LLaVA-1.5 models on multimodal benchmarks.")
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME=FOLDER_OR_ID",
        help="models to measure: LlavaForConditionalGeneration folders or hub ids; the first is the reference",
    )
    parser.add_argument(
        "--benchmarks", nargs="+", required=True, metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--data_root", type=user_path, help="folder of local data sets; missing ones are downloaded")
    parser.add_argument("--output_dir", type=user_path, required=True, help="folder for the report")
    parser.add_argument("--cache_dir", type=user_path, default=Path(HF_HOME) / "dcr_hf", help="cache of replies")
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="dtype of the model; auto: float16 on an accelerator, as in LLaVA's own evaluation, else float32",
    )
    parser.add_argument("--batch_size", type=positive, default=8, help="questions per batch")
    parser.add_argument("--max_new_tokens", type=positive, default=64, help="longest reply, in tokens")
    parser.add_argument(
        "--workers", type=not_negative, default=min(8, os.cpu_count() or 1), help="decoding processes per device"
    )
    add_hub_options(parser)
    return parser
