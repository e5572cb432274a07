"""Argument types shared by the evaluation command lines."""

import argparse
from pathlib import Path

from dcr_hf.hub import add_patience_option, prefer, set_patience


def named_paths(parser: argparse.ArgumentParser, option: str, values: list[str]) -> dict[str, str]:
    """NAME=FOLDER_OR_ID ... -> path or id by name; the name defaults to the path's last part."""
    named = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator:
            name, path = Path(value).name, value
        if not name or not path:
            parser.error(f"{option} {value}: expected NAME=FOLDER_OR_ID")
        if name in named:
            parser.error(f"{option}: the name {name!r} is given twice; write NAME=FOLDER_OR_ID")
        named[name] = path
    return named


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command line that asks the hub for data sets."""
    parser.add_argument(
        "--data_revisions",
        nargs="+",
        default=[],
        metavar="OWNER/NAME@REVISION",
        help="branches, tags or commits of the hub's data sets, instead of main",
    )
    add_patience_option(parser)


def use_hub_options(options: argparse.Namespace) -> None:
    """Raises UserError for values that `add_hub_options` cannot mean."""
    set_patience(options.hub_patience)
    prefer(options.data_revisions, "--data_revisions")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number
