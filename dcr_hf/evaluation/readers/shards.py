"""CLIP_benchmark's layouts: webdataset shards with labels or captions, or a plain folder of class folders."""

import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.evaluation.readers.class_folders import class_folders, find_split, match_names, scored_folder
from dcr_hf.evaluation.readers.image_sets import (
    IMAGE_SUFFIXES,
    CaptionedImages,
    FileImages,
    LabeledImages,
    ShardImages,
)
from dcr_hf.evaluation.readers.locate import Located, locate
from dcr_hf.files import files_below, is_debris, read_text

HUB_PATTERNS = ["*.txt", "test/*"]
SHARD_LAYOUT = "test/nshards.txt, test/0.tar ... test/{n-1}.tar, classnames.txt, zeroshot_classification_templates.txt"
_TAR_END = bytes(1024)
FOLDER_TEMPLATES = ("a photo of a {c}.",)


def read_labeled(name: str, hub_id: str | None, data_root: Path | None) -> LabeledImages:
    """A classification set, from shards or from class folders.

    Raises:
        NotFoundError: a file of the layout is missing.
        UserError: labels and class list do not match; a retrieval set; no images.
    """
    return read_split(name, locate(name, hub_id, data_root, HUB_PATTERNS), "test")


def read_split(name: str, located: Located, split: str) -> LabeledImages:
    """The images in `train` or `test` of a located classification set; raises as `read_labeled`."""
    if is_sharded(located.folder):
        return _labeled_shards(name, located, split)
    return _class_folders(name, located, split)


def read_captioned(name: str, hub_id: str | None, data_root: Path | None) -> CaptionedImages:
    """A retrieval set, from shards whose samples hold an image and a .txt of captions, one per line."""
    located = locate(name, hub_id, data_root, HUB_PATTERNS)
    _check_type(name, located.folder, "retrieval")
    table = _read_table(name, located, "test", "txt")
    captions = [[line.strip() for line in text.splitlines() if line.strip()] for text in table["txt"]]
    for index, lines in enumerate(captions):
        if not lines:
            raise UserError(f"data set {name!r}: sample {table[index]['__key__']} has no caption in its .txt.")
    return CaptionedImages(name, ShardImages(table), located.source, located.revision, captions)


def is_sharded(folder: Path) -> bool:
    return (folder / "test" / "nshards.txt").is_file() or any((folder / "test").glob("*.tar"))


def _labeled_shards(name: str, located: Located, split: str) -> LabeledImages:
    _check_type(name, located.folder, "classification")
    class_names = _class_names(located.folder / "classnames.txt", name)
    templates = _lines(located.folder / "zeroshot_classification_templates.txt", name)
    table = _read_table(name, located, split, "cls")
    with as_user_error(f"data set {name!r}: .cls", ValueError):
        labels = np.array([int(text) for text in table["cls"]], dtype=np.int64)
    return _checked(
        LabeledImages(name, ShardImages(table), located.source, located.revision, labels, class_names, templates)
    )


def _class_folders(name: str, located: Located, split: str) -> LabeledImages:
    train = find_split(located.folder, "train")
    root = train if split == "train" and train else scored_folder(located.folder)
    classes = class_folders(root)
    listed, prompts = located.folder / "classnames.txt", located.folder / "zeroshot_classification_templates.txt"
    class_names = [path.name.replace("_", " ") for path in classes]
    numbers = list(range(len(classes)))
    if listed.is_file() and classes:
        class_names = _class_names(listed, name)
        numbers = match_names(f"data set {name!r}: {listed}", class_names, [path.name for path in classes])
    paths, labels = [], []
    for label, folder in zip(numbers, classes, strict=True):
        files = files_below(folder, IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"data set {name!r}: class folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        paths += [str(path.relative_to(root)) for path in files]
        labels += [label] * len(files)
    if not paths:
        raise NotFoundError(
            f"data set {name!r}: {located.folder} is neither in CLIP_benchmark's layout ({SHARD_LAYOUT}) nor a folder "
            f"of class folders with images ({root}/CLASS/IMAGE)."
        )
    templates = _lines(prompts, name) if prompts.is_file() else FOLDER_TEMPLATES
    return _checked(
        LabeledImages(
            name,
            FileImages(root, paths),
            located.source,
            located.revision,
            np.array(labels, dtype=np.int64),
            class_names,
            templates,
        )
    )


def _checked(data: LabeledImages) -> LabeledImages:
    outside = np.unique(data.labels[(data.labels < 0) | (data.labels >= len(data.class_names))])
    if len(outside):
        raise UserError(
            f"data set {data.name!r}: labels {outside[:5].tolist()} have no name: classnames.txt of {data.source} "
            f"lists {len(data.class_names)} classes (labels 0 to {len(data.class_names) - 1})."
        )
    for template in data.templates:
        if "{c}" not in template:
            raise UserError(
                f"data set {data.name!r}: template {template!r} lacks {{c}}, which stands for the class name."
            )
    return data


def _check_type(name: str, folder: Path, wanted: str) -> None:
    declared = folder / "dataset_type.txt"
    found = read_text(f"data set {name!r}", declared).strip() if declared.is_file() else "classification"
    if found != wanted:
        raise UserError(
            f"data set {name!r}: {folder} is a {found} set (dataset_type.txt, absent = classification), and a "
            f"{wanted} set was asked for."
        )


def _class_names(path: Path, name: str) -> list[str]:
    """One a line; an empty line is a class too, but for those at the end."""
    names = [line.strip() for line in re.split(r"\r\n|\r|\n", _existing_text(path, name))]
    while names and not names[-1]:
        names.pop()
    return names


def _lines(path: Path, name: str) -> list[str]:
    return [line.strip() for line in re.split(r"\r\n|\r|\n", _existing_text(path, name)) if line.strip()]


def _existing_text(path: Path, name: str) -> str:
    if not path.is_file():
        raise NotFoundError(f"data set {name!r} lacks {path}. Expected in its folder: {SHARD_LAYOUT}.")
    return read_text(f"data set {name!r}", path)


def _shard_paths(name: str, folder: Path) -> list[str]:
    counted = folder / "nshards.txt"
    number = " ".join(_lines(counted, name))
    if not number.isdigit():
        raise UserError(f"data set {name!r}: {counted} says {number!r}, expected the number of shards.")
    paths = [folder / f"{index}.tar" for index in range(int(number))]
    for path in paths:
        if not path.is_file():
            raise NotFoundError(
                f"data set {name!r} lacks {path}: {counted} says {number} shards. Layout: {SHARD_LAYOUT}."
            )
        with as_user_error(f"data set {name!r}", OSError), path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(_TAR_END)))
            if file.read() != _TAR_END:  # tar readers take a truncated archive for a short one
                raise UserError(f"data set {name!r}: {path} is truncated (no end mark of a tar). Fetch it again.")
    return [str(path) for path in paths]


def _read_table(name: str, located: Located, split: str, target: str) -> datasets.Dataset:
    """Rows (__key__, __url__, image, `target`), as an Arrow table: made once, then memory-mapped from the `datasets`
    cache. A sample's image may be of any kind, each of another; its bytes are decoded later, with our limits."""
    folder = located.folder / split
    features = {column: datasets.Value("string") for column in ("__key__", "__url__", target)}
    try:
        with PartialState().main_process_first():
            return datasets.Dataset.from_generator(
                _samples,
                features=datasets.Features(features | {"image": datasets.Value("binary")}),
                # The revision is for the cache: other files, another table.
                gen_kwargs={"paths": _shard_paths(name, folder), "target": target, "revision": located.revision},
                split=split,
            )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"data set {name!r}: {error.__cause__}") from error
        raise UserError(
            f"data set {name!r}: the shards in {folder} cannot be read: {error.__cause__ or error}. Is one truncated? "
            "Fetch them again."
        ) from error


def _samples(paths: list[str], target: str, revision: str) -> Iterator[dict]:
    """A webdataset's samples: neighbouring members of one name up to its first dot."""
    for path in paths:
        with tarfile.open(path) as tar:
            members = (member for member in tar if member.isfile() and not is_debris(member.name))
            for key, group in itertools.groupby(members, lambda member: _key_and_suffix(member.name)[0]):
                sample = {_key_and_suffix(member.name)[1]: member for member in group}
                images = [suffix for suffix in sample if suffix in IMAGE_SUFFIXES]
                if not images and f".{target}" not in sample:
                    continue
                if len(images) != 1 or f".{target}" not in sample:
                    raise UserError(
                        f"sample {key} of {path} holds {', '.join(sample)}; expected one image and .{target}."
                    )
                content, text = (_content(tar, sample[suffix]) for suffix in (images[0], f".{target}"))
                with as_user_error(f"sample {key} of {path}: .{target}", UnicodeDecodeError):
                    yield {"__key__": key, "__url__": path, "image": content, target: text.decode("utf-8-sig")}


def _key_and_suffix(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", f".{suffix.lower()}"


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()
