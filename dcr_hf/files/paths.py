"""A path as a user gives it."""

from argparse import ArgumentTypeError
from pathlib import Path


def user_path(text: str) -> Path:
    """The path of a command-line option, `~` being the home folder.

    Raises:
        ArgumentTypeError: an empty one, which would be the working folder.
    """
    if not text:
        raise ArgumentTypeError("it is empty; give a path, or leave the option out")
    return Path(text).expanduser()
