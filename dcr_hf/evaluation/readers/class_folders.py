"""Folders of class folders: which are the splits, which the classes, and what the classes are called."""

import re
from collections.abc import Sequence
from pathlib import Path

from dcr_hf.errors import UserError
from dcr_hf.files import is_debris

# In the order in which they are looked for; any case.
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
WORDNET_ID = re.compile(r"n\d{8}")


def find_split(folder: Path, split: str) -> Path | None:
    """The folder of `train` or `test` in a data set's folder, by any of its usual names."""
    found = {path.name.lower(): path for path in class_folders(folder)}
    return next((found[name] for name in _SPLITS[split] if name in found), None)


def scored_folder(folder: Path) -> Path:
    """The folder of the test split's class folders: test, val or validation, else the data set's own folder."""
    return find_split(folder, "test") or folder


def class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_debris(path.name))


def match_names(who: str, listed: Sequence[str], folders: Sequence[str]) -> list[int]:
    """The label of each folder: the line of its name in a list of classes.

    Folders that are numbers are lines, from 0 or from 1; WordNet ids are in the list's order, as in ImageNet's lists;
    others are matched by name, whatever the case, `_` for a space.

    Args:
        who: the list, for messages.

    Raises:
        UserError: they do not match.
    """
    if len(listed) != len(folders):
        raise UserError(f"{who} names {len(listed)} classes, and there are {len(folders)} class folders.")
    if all(name.isdecimal() for name in folders):
        numbers = [int(name) for name in folders]
        if sorted(numbers) in (list(range(len(folders))), list(range(1, len(folders) + 1))):
            return [number - min(numbers) for number in numbers]
        raise UserError(
            f"{who} names {len(listed)} classes, but the folders are not numbered 0 to {len(folders) - 1}."
        )
    if all(WORDNET_ID.fullmatch(name) for name in folders):
        return list(range(len(folders)))
    lines = {_plain(name): number for number, name in enumerate(listed)}
    unknown = [name for name in folders if _plain(name) not in lines]
    if unknown or len(lines) < len(listed):
        example = f"folder {unknown[0]!r} is not in it" if unknown else "a name is in it twice"
        raise UserError(
            f"{who} does not fit the class folders: {example}. Lines are matched to folders by name (or by number, "
            "where the folders are numbers): correct the list or rename the folders."
        )
    return [lines[_plain(name)] for name in folders]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
