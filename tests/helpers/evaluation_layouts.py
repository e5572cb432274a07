"""Benchmark folders in exactly the published layouts, from a few photographs."""

import csv
from pathlib import Path

from PIL import Image

from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from helpers.images import encoded, photographs, write_shard

TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}."]


def write_mmvp(folder: Path, pairs: int = 135, images: list[Image.Image] | None = None) -> Path:
    """MMVP_VLM: ids count from 1, the first of a pair is odd. Row types as published: equal within a pair."""
    images = images or photographs(2 * pairs, side=48)
    folder.mkdir(parents=True)
    with (folder / "Questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question ID", "Type", "Statement"])
        for index, image in enumerate(images):
            kind = CATEGORIES[index // 2 * len(CATEGORIES) // pairs]
            path = folder / "MLLM_VLM Images" / kind / f"{index + 1}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            writer.writerow([index + 1, kind, f"thing {index + 1}, seen"])
    return folder


def write_shards(
    folder: Path,
    samples: list[dict[str, bytes]],
    shards: int = 2,
    class_names: list[str] | None = None,
    dataset_type: str | None = None,
    split: str = "test",
) -> Path:
    """A clip-benchmark webdataset: test/{i}.tar, test/nshards.txt and the lists beside."""
    share = -(-len(samples) // shards)
    for shard in range(shards):
        rows = {
            f"s{index:07d}": samples[index] for index in range(shard * share, min(len(samples), (shard + 1) * share))
        }
        write_shard(folder / split / f"{shard}.tar", rows)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    if class_names is not None:
        (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    if dataset_type is not None:
        (folder / "dataset_type.txt").write_text(dataset_type)
    return folder


def write_classification(
    folder: Path, labels: list[int], class_names: list[str], format: str = "PNG", split: str = "test"
) -> Path:
    images = photographs(len(labels), side=40)
    samples = [
        {format.lower(): encoded(image, format), "cls": str(label).encode()}
        for image, label in zip(images, labels, strict=True)
    ]
    return write_shards(folder, samples, class_names=class_names, split=split)


def write_retrieval(folder: Path, captions: list[list[str]]) -> Path:
    samples = [
        {"jpg": encoded(image), "txt": "\n".join(lines).encode()}
        for image, lines in zip(photographs(len(captions), side=40), captions, strict=True)
    ]
    return write_shards(folder, samples, dataset_type="retrieval")


def write_class_folders(folder: Path, counts: dict[str, int]) -> Path:
    images = iter(photographs(sum(counts.values()), side=40))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            next(images).save(folder / name / f"{index}.png")
    return folder
