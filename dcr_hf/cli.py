"""The command line of a recipe: options from four sources, --help in groups, quiet libraries, loading under ZeRO-3."""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import json
import logging
import os
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import torch
import transformers
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import deepspeed

from dcr_hf.config import DCRConfig
from dcr_hf.config.options import GROUPS, Role, options_of
from dcr_hf.errors import DefaultsFormatter, UserError, as_user_error
from dcr_hf.hub import declare, hub_id, set_patience


def parse(
    recipe: Any, training: dict[str, Any], argv: list[str], config: type[TrainingArguments] = DCRConfig
) -> tuple[Any, Any]:
    """A recipe and a config by the options given, strongest first: command line, --config FILE.yaml, recipe, defaults.

    Args:
        recipe: a `Recipe` or another dataclass of options.
        training: changed defaults of `config`.
        argv: the command line.
        config: the kind of config.

    The recipe's own ids are taken for ids of the hub, and --hub_patience counts from here on.

    Raises:
        UserError: an unknown name, with the nearest known ones; a value that is none of the choices.
    """
    parser = _Parser([type(recipe), config], allow_abbrev=False, add_help=True)
    known = {action.dest for action in parser._actions}
    file, argv = _take_config_option(argv)
    words: list[str] = []
    for origin, options in (("the recipe", dataclasses.asdict(recipe) | training), (file, _read_yaml(file))):
        _refuse_unknown(options, known, origin)
        words += _as_arguments(options)
        parser.show_defaults(options)
    *parsed, rest = parser.parse_args_into_dataclasses([*words, *argv], return_remaining_strings=True)
    if rest:
        names = [word.removeprefix("--").split("=")[0] for word in rest if word.startswith("--")]
        _refuse_unknown(dict.fromkeys(names), known, "the command line")
        raise UserError(f"the command line has words that belong to no option: {' '.join(rest)}")
    for part in parsed:
        _expand_paths(part)
    set_patience(parsed[0].hub_patience)
    declare(value for value in dataclasses.asdict(recipe).values() if isinstance(value, str) and hub_id(value))
    return parsed[0], parsed[1]


def _expand_paths(options: Any) -> None:
    """Let `~` be the home folder in every option of ours, and refuse empty ones."""
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if value == "" and option.default != "":
            raise UserError(f"--{option.name} is empty. Give a value, or leave it out.")
        if isinstance(value, str) and value.startswith("~"):
            setattr(options, option.name, str(Path(value).expanduser()))


class _Formatter(DefaultsFormatter):
    """Each option under one name."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return (
            f"{action.option_strings[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "__name__", "value").upper().replace("STRING_TO_BOOL", "BOOL")


class _Parser(HfArgumentParser):
    """transformers' parser of dataclasses, with our groups in --help and errors of one line."""

    def __init__(self, kinds: list[Any], **kwargs: Any):
        usage = "%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]"
        super().__init__(kinds, formatter_class=_Formatter, usage=usage, **kwargs)
        options = {option.name: option for kind in kinds for option in options_of(kind)}
        groups = {title: self.add_argument_group(title) for title in GROUPS}
        for action in [action for action in self._optionals._group_actions if action.dest != "help"]:
            self._optionals._group_actions.remove(action)
            option = options[action.dest]
            groups[option.group]._group_actions.append(action)
            if option.role is Role.REFUSED or action.option_strings[0].startswith("--no_"):
                action.help = argparse.SUPPRESS

    def show_defaults(self, options: dict[str, Any]) -> None:
        """Let --help say what a recipe runs with."""
        for action in self._actions:
            if action.dest in options:
                action.default, action.required = options[action.dest], False

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    @staticmethod
    def _parse_dataclass_field(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        """argparse formats help texts with %, and ours say 50 %."""
        field = copy.copy(field)
        if "help" in field.metadata:
            text = str(field.metadata["help"])
            field.metadata = types.MappingProxyType({**field.metadata, "help": _escape_percent(text)})
        HfArgumentParser._parse_dataclass_field(parser, field)


def _escape_percent(text: str) -> str:
    """A lone % is a percent sign; %(default)s and %% stay as they are."""
    return text if "%(" in text or "%%" in text else text.replace("%", "%%")


def _take_config_option(argv: list[str]) -> tuple[str | None, list[str]]:
    for index, word in enumerate(argv):
        if word == "--config":
            if index + 1 == len(argv):
                raise UserError("--config needs a YAML file.")
            return argv[index + 1], [*argv[:index], *argv[index + 2 :]]
        if word.startswith("--config="):
            return word.removeprefix("--config="), [*argv[:index], *argv[index + 1 :]]
    return None, argv


class _TextLoader(yaml.SafeLoader):
    """YAML without its many words for booleans: `no` is also a value of transformers' options, and stays a word."""

    yaml_implicit_resolvers = {
        letter: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_yaml(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    with as_user_error(f"--config {file}", OSError, UnicodeDecodeError, yaml.YAMLError):
        options = yaml.load(Path(file).expanduser().read_text(encoding="utf-8-sig"), _TextLoader) or {}
    if not isinstance(options, dict):
        raise UserError(f"--config {file} must hold 'name: value' lines, found {type(options).__name__}.")
    return options


def _refuse_unknown(options: dict[str, Any], known: set[str], origin: str | None) -> None:
    for name in map(str, options):
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f" Did you mean {', '.join(near)}?" if near else " --help lists the options."
            raise UserError(f"{origin} has an unknown option {name!r}.{hint}")


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
def loaded_complete(args: TrainingArguments) -> Iterator[None]:
    """Inside, models are loaded complete on every rank.

    Under ZeRO-3 transformers partitions whatever it loads, the denoiser's text encoder too. DeepSpeed partitions the
    model that is trained when training begins.
    """
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if args.deepspeed:  # for a strategy from accelerate's configuration, Trainer does this itself
            deepspeed.set_hf_deepspeed_config(args.hf_deepspeed_config)


def quiet_libraries() -> None:
    """Keep loading bars, reports and deprecation warnings of the libraries out of the terminal."""
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|peft|accelerate|datasets)\.")
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which accelerate imports, would search and warn
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
