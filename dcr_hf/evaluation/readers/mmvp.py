"""MMVP-VLM's layout: Questions.csv, read in twos, and `MLLM_VLM Images/<Type>/<id>.jpg`."""

from pathlib import Path

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.evaluation.readers.image_sets import FileImages, Pair, PairedImages
from dcr_hf.evaluation.readers.locate import locate
from dcr_hf.files import read_table

HEADER = ["Question ID", "Type", "Statement"]
IMAGE_FOLDER = "MLLM_VLM Images"
LAYOUT = f"Questions.csv ({','.join(HEADER)}; 270 rows) and '{IMAGE_FOLDER}/<Type>/<Question ID>.jpg'"
CATEGORIES = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)


def read_mmvp(name: str, hub_id: str | None, data_root: Path | None) -> PairedImages:
    """The pairs in the file's order. A pair's category is its position, whatever `Type` says, as in the benchmark's
    own script: the published 135 pairs are nine runs of 15.

    Raises:
        NotFoundError: the table or images are missing; the message counts the images and names the first.
        UserError: other columns, an odd number of rows, or other than nine equal categories.
    """
    located = locate(name, hub_id, data_root, ["Questions.csv", f"{IMAGE_FOLDER}/**"])
    rows = _read_rows(located.folder)
    paths: list[str] = []
    pairs: list[Pair] = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        # Both images come from the first row's folder: the published table has rows whose own Type differs.
        paths += [f"{IMAGE_FOLDER}/{first['Type']}/{row['Question ID']}.jpg" for row in (first, second)]
        ids = int(first["Question ID"]), int(second["Question ID"])
        pairs.append(
            Pair(
                category=CATEGORIES[len(pairs) * len(CATEGORIES) // (len(rows) // 2)],
                question_ids=ids,
                statements=(first["Statement"], second["Statement"]),
                truth=(1 - ids[0] % 2, 1 - ids[1] % 2),  # an odd id is true of the first image
            )
        )
    missing = [path for path in paths if not (located.folder / path).is_file()]
    if missing:
        raise NotFoundError(
            f"MMVP-VLM: {len(missing)} of {len(paths)} images are missing, the first is {located.folder / missing[0]}."
            f" Expected in the folder: {LAYOUT}."
        )
    return PairedImages(name, FileImages(located.folder, paths), located.source, located.revision, pairs)


def _read_rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "Questions.csv"
    if not path.is_file():
        raise NotFoundError(f"MMVP-VLM: {folder} lacks Questions.csv. Expected in the folder: {LAYOUT}.")
    columns, numbered = read_table("MMVP-VLM", path)
    if columns != HEADER:
        raise UserError(f"MMVP-VLM: {path} has the columns {columns}, expected {HEADER}.")
    for line, row in numbered:
        if None in row or None in row.values() or not row["Question ID"].isdigit():
            raise UserError(f"MMVP-VLM: line {line} of {path} is not 'number,Type,Statement': {list(row.values())}.")
    rows = [row for _, row in numbered]
    if len(rows) % 2:
        raise UserError(
            f"MMVP-VLM: {path} has {len(rows)} rows, an odd number; rows are read in twos (270 published)."
        )
    if not rows or len(rows) // 2 % len(CATEGORIES):
        raise UserError(
            f"MMVP-VLM: {path} has {len(rows) // 2} pairs, which do not make nine equal categories (published: "
            "9 x 15). Fetch the data set again."
        )
    return rows
