"""A classification set with both splits as one list of images, for training and scoring a linear probe."""

from pathlib import Path

import numpy as np

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.evaluation.readers.class_folders import class_folders, find_split, scored_folder
from dcr_hf.evaluation.readers.image_sets import JoinedImages, LabeledImages
from dcr_hf.evaluation.readers.locate import locate
from dcr_hf.evaluation.readers.shards import HUB_PATTERNS, is_sharded, read_split

LAYOUTS = "train/nshards.txt, train/0.tar ... beside test/ and the lists, or train/CLASS/IMAGE beside test/ or val/"


def read_train_and_test(name: str, hub_id: str | None, data_root: Path | None) -> LabeledImages:
    """The training images first, `train_count` of them, then the test images.

    Raises:
        NotFoundError: a split or a file of the layout is missing.
        UserError: as `read_labeled`; the splits have different classes, or too few training images.
    """
    located = locate(name, hub_id, data_root, [*HUB_PATTERNS, "train/*"])
    _check_folders(name, located.folder)
    train, test = (read_split(name, located, split) for split in ("train", "test"))
    _check_labels(name, train.labels, test.labels)
    return LabeledImages(
        name,
        JoinedImages({"train": train.images, scored_folder(located.folder).name: test.images}),
        located.source,
        located.revision,
        np.concatenate([train.labels, test.labels]),
        test.class_names,
        test.templates,
        train_count=len(train.labels),
        split="train+test",
    )


def _check_folders(name: str, folder: Path) -> None:
    train = find_split(folder, "train")
    if train is None:
        raise NotFoundError(
            f"data set {name!r} has no training split: there is no {folder / 'train'}. A linear probe learns on one "
            f"split and is scored on another: {LAYOUTS}."
        )
    if is_sharded(folder):
        return
    scored = scored_folder(folder)
    if scored == folder:
        raise NotFoundError(
            f"data set {name!r} has no test split: {folder} has neither test/ nor val/ beside train/. A linear probe "
            f"learns on one split and is scored on another: {LAYOUTS}."
        )
    # Labels are positions among the class folders, so that both splits need the same folders.
    trained, tested = ({path.name for path in class_folders(root)} for root in (train, scored))
    if trained != tested:
        raise UserError(
            f"data set {name!r}: {train} and {scored} need the same class folders; in one of them only: "
            f"{', '.join(sorted(trained ^ tested)[:5])}."
        )


def _check_labels(name: str, train: np.ndarray, test: np.ndarray) -> None:
    untrained = np.setdiff1d(test, train)
    if len(untrained):
        raise UserError(
            f"data set {name!r}: classes {untrained[:5].tolist()} of the test split have no training image."
        )
    counts = np.bincount(train)
    if np.sum(counts > 0) < 2 or counts.max() < 2:
        raise UserError(
            f"data set {name!r}: a linear probe needs training images of two classes, and two images of one class or "
            f"more (a part is held out to choose C); found {len(train)} images of {np.sum(counts > 0)} classes."
        )
