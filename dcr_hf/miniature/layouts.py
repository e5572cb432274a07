"""Scenes in the layouts that the field publishes its data in, so that nothing else has to know about scenes."""

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dcr_hf.evaluation.readers.mmvp import CATEGORIES, HEADER, IMAGE_FOLDER
from dcr_hf.miniature.captions import coarse_caption, describe, phrase, template
from dcr_hf.miniature.drawing import render
from dcr_hf.miniature.scenes import ATTRIBUTES, FINE_CLASSES, SHAPES, Attribute, Scene, sample_scene
from dcr_hf.models.reading import read_json

PUBLISHED_PAIRS = 15  # a category
PAIRS = "scene_pairs"
# Of `write_benchmarks`, for scenes on which a run's checkpoints are chosen: few, since each checkpoint is measured.
FOR_CHECKPOINTS = {"per_category": 100, "test": 2000}
TRAINING_IMAGES, TRAINING_SEED = 8_000, 100  # DCR's own: not those that the models were pretrained on
_CAPTION_KEY, _PAIR_KEY = 21, 22
_PAIRS_FROM = 1_000_000  # scenes of pairs, of a number that no other set of the draw reaches
_SHARD = 100  # more shards than lanes: a lane would read all of a shard for its part of it
MARK = "scenes.json"  # which scenes a folder holds, written last
_CHUNK = 64


def draw_scenes(scenes: Sequence[Scene], size: int, title: str, backgrounds: Sequence | None = None) -> np.ndarray:
    """(N, size, size, 3), uint8; on all cores, with a bar."""
    jobs = list(zip(scenes, backgrounds or [None] * len(scenes), strict=True))
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    workers = min(len(os.sched_getaffinity(0)), len(chunks))
    bar = tqdm(total=len(jobs), desc=f"drawing {title}", unit=" images")
    with bar, ProcessPoolExecutor(workers) as pool:
        drawn = []
        for part in pool.map(partial(_draw, size=size), chunks):
            drawn.append(part)
            bar.update(len(part))
    return np.concatenate(drawn)


def _draw(jobs: list, size: int) -> np.ndarray:
    return np.stack([np.asarray(render(scene, size, background)) for scene, background in jobs])


def write_training_shards(folder: Path, draw: str, count: int, size: int, seed: int = 0) -> None:
    """CC3M as img2dataset writes it: KEY.jpg, KEY.txt (a coarse caption), KEY.json; `_stats.json` beside a shard.

    An existing folder is complete and left as it is, unless other scenes than these were drawn into it.
    """
    wanted = {"draw": draw, "count": count, "size": size, "seed": seed}
    mark = folder / MARK
    if folder.is_dir() and not (mark.is_file() and read_json("drawn scenes", mark) != wanted):
        return
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    scenes = [sample_scene(draw, index, seed) for index in range(count)]
    images = draw_scenes(scenes, size, "training images")
    for shard, start in enumerate(range(0, count, _SHARD)):
        samples = []
        for offset in range(min(_SHARD, count - start)):
            scene, key = scenes[start + offset], f"{shard:05d}{offset:04d}"
            caption = coarse_caption(scene, np.random.default_rng((*scene.look, _CAPTION_KEY)))
            facts = {"key": key, "caption": caption, "status": "success", "width": size, "height": size}
            samples += [
                (f"{key}.jpg", _jpeg(images[start + offset])),
                (f"{key}.txt", caption.encode()),
                (f"{key}.json", json.dumps(facts).encode()),
            ]
        _write_tar(unfinished / f"{shard:05d}.tar", samples)
        facts = {"count": len(samples) // 3, "successes": len(samples) // 3}
        (unfinished / f"{shard:05d}_stats.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    (unfinished / MARK).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    unfinished.rename(folder)


def write_pairs(folder: Path, some: Iterable[tuple[Attribute, Scene, Scene]], size: int) -> None:
    """An MMVP_VLM folder of `pairs`, whose two images differ in the category's attribute and in nothing else."""
    rows: list[dict[str, str]] = []
    scenes = []
    for pair, (attribute, scene, other) in enumerate(some):
        category = CATEGORIES[ATTRIBUTES.index(attribute)]
        for number, each in enumerate((scene, other)):
            statement = describe(each, [attribute.name])
            rows.append({"Question ID": str(2 * pair + number + 1), "Type": category, "Statement": statement})
            scenes.append(each)
    for row, image in zip(rows, draw_scenes(scenes, size, folder.name), strict=True):
        path = folder / IMAGE_FOLDER / row["Type"] / f"{row['Question ID']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(image))
    with (folder / "Questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)


def pairs(draw: str, per_category: int, seed: int = 0) -> Iterator[tuple[Attribute, Scene, Scene]]:
    """(attribute, scene, the same scene with another value of it), category after category in MMVP's order."""
    for category, attribute in enumerate(ATTRIBUTES):
        for number in range(per_category):
            scene = sample_scene(draw, _PAIRS_FROM + category * 10_000 + number, seed)
            random = np.random.default_rng((*scene.look, _PAIR_KEY))
            others = [value for value in attribute.values if value != getattr(scene, attribute.name)]
            yield attribute, scene, scene.changed(attribute.name, str(random.choice(others)))


def write_labeled(
    root: Path,
    prefix: str,
    draw: str,
    counts: dict[str, int],
    size: int,
    seed: int = 0,
    swap_backgrounds: bool = False,
) -> list[str]:
    """clip-benchmark's webdatasets `PREFIX_shape`, `PREFIX_fine`, `PREFIX_<attribute>`: the same images, labelled each
    way.

    Args:
        counts: images by split. The split `train` is of the draw `train`, whatever `draw` the others are of; no
            scene of it is in the training shards.
        swap_backgrounds: each scene stands before its neighbour's background.

    Returns:
        the names of the sets.
    """
    sets: dict[str, tuple[tuple[str, ...], list[str], list[str]]] = {
        "shape": (SHAPES, list(SHAPES), ["a photo of a {c}"]),
        "fine": (FINE_CLASSES, list(FINE_CLASSES), ["a photo of a {c}"]),
    }
    for attribute in ATTRIBUTES:
        names = [phrase(attribute.name, value) for value in attribute.values]
        sets[attribute.name] = (attribute.values, names, template(attribute.name))
    encoded: dict[str, tuple[list[Scene], list[bytes]]] = {}
    for split, count in counts.items():
        of, first = ("train", _PAIRS_FROM) if split == "train" else (draw, 0)
        scenes = [sample_scene(of, first + index, seed) for index in range(count)]
        others = [scene.look for scene in [*scenes[1:], scenes[0]]] if swap_backgrounds else None
        encoded[split] = scenes, [_png(image) for image in draw_scenes(scenes, size, f"{prefix} ({split})", others)]
    for name, (values, class_names, prompts) in sets.items():
        folder = root / f"{prefix}_{name}"
        for split, (scenes, images) in encoded.items():
            samples = []
            for index, (scene, image) in enumerate(zip(scenes, images, strict=True)):
                label = values.index(getattr(scene, name))
                samples += [(f"s{index:07d}.png", image), (f"s{index:07d}.cls", str(label).encode())]
            _write_tar(folder / split / "0.tar", samples)
            (folder / split / "nshards.txt").write_text("1\n", encoding="utf-8")
        (folder / "classnames.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return [f"{prefix}_{name}" for name in sets]


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """The same members give the same bytes: no time, no owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _jpeg(pixels: np.ndarray) -> bytes:
    # No chroma subsampling: at 32 pixels it would blur colours over a quarter of the object.
    return _encode(pixels, "JPEG", quality=95, subsampling=0)


def _png(pixels: np.ndarray) -> bytes:
    return _encode(pixels, "PNG", compress_level=1)


def _encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_benchmarks(
    root: Path, draw: str, size: int, seed: int = 0, per_category: int = 200, train: int = 2000, test: int = 3000
) -> None:
    """All that is measured on a draw, below `root`: MMVP_VLM with the published number of pairs, `scene_pairs` with
    `per_category`, and the labelled sets `scene_shape`, `scene_fine`, `scene_<attribute>`. What is complete is left
    as it is.
    """
    wanted = {"draw": draw, "size": size, "seed": seed, "pairs": per_category, "train": train, "test": test}
    wanted["classes"] = len(FINE_CLASSES)  # folders from before they were labelled are drawn again
    mark = root / MARK
    if mark.is_file() and read_json("drawn scenes", mark) == wanted:
        return
    shutil.rmtree(root, ignore_errors=True)
    write_pairs(root / "MMVP_VLM", pairs(draw, PUBLISHED_PAIRS, seed), size)
    write_pairs(root / PAIRS, pairs(draw, per_category, seed), size)
    write_labeled(root, "scene", draw, {"train": train, "test": test}, size, seed)
    mark.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
