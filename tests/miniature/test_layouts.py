"""What is written is what the ordinary readers of training data and benchmarks expect."""

import json
import tarfile

import numpy as np

from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import LANES, TrainingImages
from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.mmvp import CATEGORIES, read_mmvp
from dcr_hf.evaluation.readers.shards import read_labeled
from dcr_hf.miniature.drawing import render
from dcr_hf.miniature.layouts import (
    PAIRS,
    TRAINING_IMAGES,
    pairs,
    write_benchmarks,
    write_labeled,
    write_pairs,
    write_training_shards,
)
from dcr_hf.miniature.scenes import ATTRIBUTES, FINE_CLASSES, SHAPES, sample_scene


def test_training_shards_are_read_as_cc3m(tmp_path):
    write_training_shards(tmp_path / "a", "train", 230, 32)
    write_training_shards(tmp_path / "b", "train", 230, 32)
    assert [path.name for path in sorted((tmp_path / "a").glob("*.tar"))] == ["00000.tar", "00001.tar", "00002.tar"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    source = find_source(str(tmp_path / "a"))
    assert source.images == 230
    assert TRAINING_IMAGES / 100 >= LANES  # no lane reads a shard for a part of it
    images = TrainingImages(source, 32, 4, rank=0, world_size=1)
    first = next(iter(images))
    assert first["image"].shape == (3, 32, 32)


def test_training_shards_are_drawn_once_and_anew_for_another_size(tmp_path):
    folder = tmp_path / "train"

    def widths():
        facts = [member for member in tarfile.open(folder / "00000.tar") if member.name.endswith(".json")]
        return len(facts), json.loads(tarfile.open(folder / "00000.tar").extractfile(facts[0].name).read())["width"]

    write_training_shards(folder, "train", 6, 32)
    (folder / "00000_stats.json").unlink()
    write_training_shards(folder, "train", 6, 32)
    assert widths() == (6, 32) and not (folder / "00000_stats.json").exists()  # left as it was
    write_training_shards(folder, "train", 5, 64)
    assert widths() == (5, 64) and (folder / "00000_stats.json").exists()
    (folder / "scenes.json").unlink()  # somebody's own shards
    write_training_shards(folder, "train", 7, 32)
    assert widths() == (5, 64)


def test_pairs_differ_in_exactly_one_attribute():
    drawn = list(pairs("test", 15))
    assert len(drawn) == 135
    for index, (attribute, scene, other) in enumerate(drawn):
        assert attribute == ATTRIBUTES[index // 15]
        assert other == scene.changed(attribute.name, getattr(other, attribute.name)) != scene
    assert len({scene.look for _, scene, _ in drawn}) == 135


def test_the_pair_folder_is_mmvps(tmp_path):
    write_pairs(tmp_path / "MMVP_VLM", pairs("dev", 2), 32)
    data = read_mmvp("MMVP_VLM", None, tmp_path)
    assert [pair.category for pair in data.pairs] == [name for name in CATEGORIES for _ in range(2)]
    assert all(pair.truth == (0, 1) for pair in data.pairs)
    for index, (attribute, *scenes) in enumerate(pairs("dev", 2)):
        for number, scene in enumerate(scenes):
            read = decode_image(data.images.read(2 * index + number), "")
            assert np.abs(np.asarray(read, int) - np.asarray(render(scene), int)).mean() < 4  # a JPEG
        first, second = data.pairs[index].statements
        assert first != second and scenes[0].shape in first, attribute


def test_labelled_sets_share_images_and_differ_in_labels(tmp_path):
    names = write_labeled(tmp_path, "scene", "test", {"train": 30, "test": 40}, 32)
    assert names == ["scene_shape", "scene_fine", *(f"scene_{attribute.name}" for attribute in ATTRIBUTES)]
    shape = read_labeled("scene_shape", None, tmp_path)
    assert list(shape.class_names) == list(SHAPES)
    scenes = [sample_scene("test", index) for index in range(40)]
    assert [SHAPES[label] for label in shape.labels] == [scene.shape for scene in scenes]
    color = read_labeled("scene_color", None, tmp_path)
    colors = ATTRIBUTES[5].values
    assert [colors[label] for label in color.labels] == [scene.color for scene in scenes]
    fine = read_labeled("scene_fine", None, tmp_path)
    assert list(fine.class_names) == list(FINE_CLASSES) and len(set(FINE_CLASSES)) == 5 * 3 * 8
    named = [f"{scene.color} {scene.structure} {scene.shape}" for scene in scenes]
    assert [FINE_CLASSES[label] for label in fine.labels] == named == [scene.fine for scene in scenes]
    assert shape.images.read(7) == color.images.read(7) == fine.images.read(7)
    assert (np.asarray(decode_image(color.images.read(7), "")) == np.asarray(render(scenes[7]))).all()


def test_swapped_backgrounds_keep_scene_and_label(tmp_path):
    write_labeled(tmp_path, "scene", "test", {"test": 8}, 32)
    write_labeled(tmp_path, "swapped", "test", {"test": 8}, 32, swap_backgrounds=True)
    own, other = (read_labeled(f"{name}_shape", None, tmp_path) for name in ("scene", "swapped"))
    assert own.labels.tolist() == other.labels.tolist()
    assert all(own.images.read(row) != other.images.read(row) for row in range(8))


def test_whole_data_is_not_drawn_twice_and_half_of_it_again(tmp_path):
    root = tmp_path / "dev"
    numbers = {"per_category": 1, "train": 8, "test": 8}
    write_benchmarks(root, "dev", 32, **numbers)
    assert len(read_mmvp("MMVP_VLM", None, root).pairs) == 135
    assert len(read_mmvp(PAIRS, None, root).pairs) == 9
    mark = json.loads((root / "scenes.json").read_text())
    assert mark == {"draw": "dev", "size": 32, "seed": 0, "pairs": 1, "train": 8, "test": 8, "classes": 120}
    (root / PAIRS / "Questions.csv").unlink()
    write_benchmarks(root, "dev", 32, **numbers)
    assert not (root / PAIRS / "Questions.csv").is_file()
    (root / "scenes.json").unlink()
    write_benchmarks(root, "dev", 32, **numbers)
    assert len(read_mmvp(PAIRS, None, root).pairs) == 9


def test_probes_are_trained_on_scenes_that_no_other_set_holds(tmp_path):
    write_training_shards(tmp_path / "cc3m", "train", 40, 32)
    write_labeled(tmp_path, "scene", "test", {"train": 40, "test": 40}, 32)
    contents = [
        tar.extractfile(member).read()
        for path in (tmp_path / "scene_shape" / "train" / "0.tar", tmp_path / "scene_shape" / "test" / "0.tar")
        for tar in [tarfile.open(path)]
        for member in tar
        if member.name.endswith(".png")
    ]
    trained_on = {render(sample_scene("train", index)).tobytes() for index in range(40)}
    drawn = {decode_image(content, "").tobytes() for content in contents}
    assert len(drawn) == 80 and not drawn & trained_on
