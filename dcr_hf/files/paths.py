"""A path as a user gives it."""

import os
from argparse import ArgumentTypeError
from pathlib import Path

from dcr_hf.errors import UserError


def user_path(text: str) -> Path:
    """The path of a command-line option, `~` being the home folder.

    Raises:
        ArgumentTypeError: an empty one, which would be the working folder.
    """
    if not text:
        raise ArgumentTypeError("it is empty; give a path, or leave the option out")
    return Path(text).expanduser()


def check_writable(option: str, folder: Path) -> None:
    """Raise a UserError unless the folder can be written, or made; makes nothing.

    Args:
        option: what named it, for the message.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{option} {folder}: {nearest} is a file; a folder is needed.")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{option} {folder}: {nearest} cannot be written. Choose another folder.")
