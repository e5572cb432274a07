"""The command line of a recipe: options, exit codes, and loading under ZeRO-3."""

import contextlib
import dataclasses
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import deepspeed

from dcr_hf.config import DCRConfig
from dcr_hf.export import ExportError
from dcr_hf.training.resumable import NonFiniteLossError
from dcr_hf.training.signals import NOT_FINISHED, Interrupted


@contextlib.contextmanager
def ends_with_a_line() -> Iterator[None]:
    """Mistakes end the program with one line and code 2, SIGTERM and SIGINT with a checkpoint and code 75."""
    try:
        yield
    except Interrupted as interruption:
        print(f"{Path(sys.argv[0]).name}: {interruption} Run the same command again to go on.", file=sys.stderr)
        raise SystemExit(NOT_FINISHED) from None
    except (OSError, ValueError, ExportError, NonFiniteLossError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def parse(
    recipe: Any, training: dict[str, Any], argv: list[str], config: type[TrainingArguments] = DCRConfig
) -> tuple[Any, Any]:
    """Options, strongest first: the command line, --config FILE.yaml, the recipe, the defaults.

    Args:
        recipe: a `Recipe` or another dataclass of options.
        training: changed defaults of `config`.
        argv: the command line.
        config: how it is trained.

    Returns:
        A recipe and a config of these kinds.

    Raises:
        ValueError: an unknown name; the nearest known ones are told.
    """
    parser = HfArgumentParser([type(recipe), config], allow_abbrev=False, add_help=True)
    known = {action.dest for action in parser._actions}
    file, argv = _take_config_option(argv)
    words: list[str] = []
    for origin, options in (("the recipe", dataclasses.asdict(recipe) | training), (file, _read_yaml(file))):
        _refuse_unknown(options, known, origin)
        words += _as_arguments(options)
    *parsed, rest = parser.parse_args_into_dataclasses([*words, *argv], return_remaining_strings=True)
    if rest:
        names = [word.removeprefix("--").split("=")[0] for word in rest if word.startswith("--")]
        _refuse_unknown(dict.fromkeys(names), known, "the command line")
        raise ValueError(f"the command line has words that belong to no option: {' '.join(rest)}")
    return tuple(parsed)


def _take_config_option(argv: list[str]) -> tuple[str | None, list[str]]:
    for index, word in enumerate(argv):
        if word == "--config":
            if index + 1 == len(argv):
                raise ValueError("--config needs a YAML file.")
            return argv[index + 1], [*argv[:index], *argv[index + 2 :]]
        if word.startswith("--config="):
            return word.removeprefix("--config="), [*argv[:index], *argv[index + 1 :]]
    return None, argv


def _read_yaml(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    options = yaml.safe_load(Path(file).read_text()) or {}
    if not isinstance(options, dict):
        raise ValueError(f"--config {file} must hold 'name: value' lines, found {type(options).__name__}.")
    return options


def _refuse_unknown(options: dict[str, Any], known: set[str], origin: str | None) -> None:
    for name in options:
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(near)}?" if near else " --help lists the options."
            raise ValueError(f"{origin} has an unknown option {name!r}.{hint}")


def _as_arguments(options: dict[str, Any]) -> list[str]:
    """{'a': [1, 2], 'b': True, 'c': None} -> ['--a', '1', '2', '--b', 'True']; the parser does the conversions."""
    words = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        words += [f"--{name}", *map(str, values)]
    return words


@contextlib.contextmanager
def loaded_whole(args: DCRConfig) -> Iterator[None]:
    """Under ZeRO-3 transformers splits whatever it loads over the ranks, the denoiser's text encoder too. Here all
    models are read whole, and DeepSpeed splits the one that is trained when training begins."""
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if args.deepspeed:  # of a strategy from accelerate's configuration, Trainer does this itself
            deepspeed.set_hf_deepspeed_config(args.hf_deepspeed_config)
