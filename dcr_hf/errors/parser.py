"""A command line whose wrong arguments end in one line."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse without usage lines before an error, and without abbreviated options: a misspelled one is refused."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")
