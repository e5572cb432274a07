"""Both splits of a classification set as one list: the training images first, and what is refused by name."""

import pytest
from PIL import ImageChops

from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.shards import read_labeled
from dcr_hf.evaluation.readers.splits import read_train_and_test
from helpers.evaluation_layouts import write_class_folders, write_classification, write_retrieval
from helpers.images import photographs

NAMES = ["cat", "dog", "green bird"]
TRAIN, TEST = [0, 1, 2, 2, 1, 0, 1], [2, 0, 1]


def write_both(folder, train=TRAIN, test=TEST):
    write_classification(folder, train, NAMES, split="train")
    return write_classification(folder, test, NAMES)


def write_folders(folder, train, test, scored="test"):
    write_class_folders(folder / "train", train)
    write_class_folders(folder / scored, test)
    return folder


def test_shards(tmp_path):
    write_both(tmp_path / "dtd")
    data = read_train_and_test("dtd", "clip-benchmark/wds_vtab-dtd", tmp_path)
    assert data.labels.tolist() == TRAIN + TEST and data.train_count == 7
    assert len(data.images) == 10 and list(data.class_names) == NAMES
    assert [data.images.name(index) for index in (0, 6, 7, 9)] == [
        "train/s0000000",
        "train/s0000006",
        "test/s0000000",
        "test/s0000002",
    ]
    for index, place in ((4, 4), (9, 2)):
        image = decode_image(data.images.read(index), "it")
        assert ImageChops.difference(image, photographs(7, side=40)[place]).getbbox() is None
    with pytest.raises(IndexError, match="image 10 of 10"):
        data.images.read(10)


@pytest.mark.parametrize("scored", ["test", "val"])
def test_class_folders(tmp_path, scored):
    write_folders(tmp_path / "birds", {"blue_tit": 3, "robin": 2}, {"blue_tit": 1, "robin": 2}, scored)
    data = read_train_and_test("birds", None, tmp_path)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 0, 1, 1] and data.train_count == 5
    assert data.images.name(3) == "train/robin/0.png" and data.images.name(7) == f"{scored}/robin/1.png"
    assert list(data.class_names) == ["blue tit", "robin"]
    assert data.images.read(7) == (tmp_path / "birds" / scored / "robin" / "1.png").read_bytes()


def test_it_is_told_apart_from_the_test_split(tmp_path):
    write_both(tmp_path / "dtd")
    both, test = (read("dtd", None, tmp_path) for read in (read_train_and_test, read_labeled))
    assert both.name == test.name and both.revision == test.revision
    assert both.title == "dtd (train+test)" and test.title == "dtd"
    assert test.train_count == 0 and test.labels.tolist() == TEST


def test_only_the_probe_asks_the_hub_for_the_training_split(tmp_path, monkeypatch):
    asked = []

    def download(given, patterns, what, kind):
        assert kind == "dataset"
        asked.append(patterns)
        return tmp_path / "dtd"

    write_both(tmp_path / "dtd")
    monkeypatch.setattr("dcr_hf.evaluation.readers.locate.local_folder", download)
    read_labeled("dtd", "clip-benchmark/wds_vtab-dtd", None)
    read_train_and_test("dtd", "clip-benchmark/wds_vtab-dtd", None)
    assert "train/*" not in asked[0] and set(asked[0]) | {"train/*"} == set(asked[1])


def test_missing_splits_are_named(tmp_path):
    write_classification(tmp_path / "dtd", TEST, NAMES)
    with pytest.raises(FileNotFoundError, match=r"'dtd' has no training split: there is no .*dtd/train\."):
        read_train_and_test("dtd", None, tmp_path)
    write_class_folders(tmp_path / "plain", {"a": 2, "b": 2})
    with pytest.raises(FileNotFoundError, match=r"'plain' has no training split"):
        read_train_and_test("plain", None, tmp_path)
    write_class_folders(tmp_path / "birds" / "train", {"a": 2, "b": 2})
    with pytest.raises(FileNotFoundError, match=r"'birds' has no test split: .*birds has neither test/ nor val/"):
        read_train_and_test("birds", None, tmp_path)
    write_retrieval(tmp_path / "flickr30k", [["a"], ["b"]])
    (tmp_path / "flickr30k" / "train").mkdir()
    with pytest.raises(ValueError, match=r"is a retrieval set"):
        read_train_and_test("flickr30k", None, tmp_path)


def test_missing_training_shard_is_named(tmp_path):
    (write_both(tmp_path / "dtd") / "train" / "1.tar").unlink()
    assert len(read_labeled("dtd", None, tmp_path).images) == 3
    with pytest.raises(FileNotFoundError, match=r"lacks .*train/1\.tar: .*train/nshards\.txt says 2 shards"):
        read_train_and_test("dtd", None, tmp_path)


def test_splits_must_have_the_same_classes(tmp_path):
    write_folders(tmp_path / "birds", {"a": 2, "b": 2}, {"a": 1, "c": 1})
    with pytest.raises(ValueError, match=r"need the same class folders; in one of them only: b, c"):
        read_train_and_test("birds", None, tmp_path)
    write_both(tmp_path / "dtd", train=[0, 0, 1])
    with pytest.raises(ValueError, match=r"classes \[2\] of the test split have no training image"):
        read_train_and_test("dtd", None, tmp_path)


@pytest.mark.parametrize("train", [[0, 0, 0], [0, 1, 2]])
def test_too_little_to_learn_from(tmp_path, train):
    write_both(tmp_path / "dtd", train=train, test=[0])
    with pytest.raises(ValueError, match=r"needs training images of two classes, and two images of one class"):
        read_train_and_test("dtd", None, tmp_path)
