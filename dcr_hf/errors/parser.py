"""A command line whose wrong arguments end in one line."""

import argparse
from typing import NoReturn


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in --help, but those that only mean that an option or a flag is not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        not_given = action.default is None or action.default == [] or action.nargs == 0
        return action.help if not_given else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """argparse without usage lines before an error, and without abbreviated options: a misspelled one is refused."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **({"allow_abbrev": False, "formatter_class": DefaultsFormatter} | kwargs))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")
