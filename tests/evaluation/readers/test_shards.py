"""CLIP_benchmark's layouts, of both types, and class folders: what is read, and what is refused by name."""

import pytest
from PIL import Image, ImageChops

from dcr_hf.errors import UserError
from dcr_hf.evaluation.benchmarks import read_sets
from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.evaluation.readers.shards import read_captioned, read_labeled
from helpers.evaluation_layouts import (
    TEMPLATES,
    write_class_folders,
    write_classification,
    write_retrieval,
    write_shards,
)
from helpers.images import encoded, photographs

NAMES = ["cat", "dog", "green bird"]
LABELS = [0, 1, 2, 2, 1, 0, 1]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_classification_shards(tmp_path, format):
    write_classification(tmp_path / "cifar10", LABELS, NAMES, format)
    data = read_labeled("cifar10", "clip-benchmark/wds_vtab-cifar10", tmp_path)
    assert data.labels.tolist() == LABELS
    assert list(data.class_names) == NAMES and list(data.templates) == TEMPLATES
    assert [data.images.name(index) for index in range(7)] == [f"s{index:07d}" for index in range(7)]
    if format == "PNG":
        image = decode_image(data.images.read(5), "five")
        assert ImageChops.difference(image, photographs(7, side=40)[5]).getbbox() is None


@pytest.mark.parametrize("folder", ["cifar10", "wds_vtab-cifar10", "vtab-cifar10"])
def test_folder_may_have_the_hub_s_name(tmp_path, folder):
    write_classification(tmp_path / folder, LABELS, NAMES)
    assert len(read_labeled("cifar10", "clip-benchmark/wds_vtab-cifar10", tmp_path).images) == 7


def test_retrieval_shards(tmp_path):
    write_retrieval(tmp_path / "flickr30k", [["a b", "c"], ["d"], [" e ", "", "f"]])
    data = read_captioned("flickr30k", None, tmp_path)
    assert data.captions == [["a b", "c"], ["d"], ["e", "f"]]
    assert len(data.images) == 3


@pytest.mark.parametrize(
    ("folders", "lines", "expected"),
    [
        ([str(i) for i in range(12)], [f"number {i}" for i in range(12)], {str(i): f"number {i}" for i in range(12)}),
        (["01", "02"], ["one", "two"], {"01": "one", "02": "two"}),
        (["apple", "blue_tit", "cat"], ["Cat", "apple", "blue tit"], {n: n for n in ("apple", "blue_tit", "cat")}),
        (["n01440764", "n01443537"], ["tench", "goldfish"], {"n01440764": "tench", "n01443537": "goldfish"}),
    ],
)
def test_a_class_list_is_matched_to_the_folders(tmp_path, folders, lines, expected):
    write_class_folders(tmp_path / "set", dict.fromkeys(folders, 1))
    (tmp_path / "set/classnames.txt").write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    data = read_labeled("set", None, tmp_path)
    found = {data.images.name(i).split("/")[0]: data.class_names[data.labels[i]] for i in range(len(data.images))}
    assert {folder: name.lower().replace(" ", "_") for folder, name in found.items()} == {
        folder: name.lower().replace(" ", "_") for folder, name in expected.items()
    }


@pytest.mark.parametrize(
    ("folders", "lines", "message"),
    [
        (["a", "b"], ["a", "c"], r"does not fit the class folders: folder 'b' is not in it"),
        (["3", "7"], ["x", "y"], r"not numbered 0 to 1"),
        (["a", "b"], ["a"], r"names 1 classes, and there are 2"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(tmp_path, folders, lines, message):
    write_class_folders(tmp_path / "set", dict.fromkeys(folders, 1))
    (tmp_path / "set/classnames.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        read_labeled("set", None, tmp_path)


def test_an_empty_line_is_a_class(tmp_path):
    write_classification(tmp_path / "set", [0, 1, 2], ["very near", "", "near", "far"])
    data = read_labeled("set", None, tmp_path)
    assert [data.class_names[label] for label in data.labels] == ["very near", "", "near"]


@pytest.mark.parametrize("split", ["validation", "Test", "VAL", "valid"])
def test_the_usual_names_of_splits_are_no_classes(tmp_path, split):
    for name in ("Train", split):
        write_class_folders(tmp_path / "set" / name, {"apple": 2, "bear": 1})
    assert list(read_labeled("set", None, tmp_path).class_names) == ["apple", "bear"]


def test_wordnet_ids_are_no_prompts(tmp_path):
    write_class_folders(tmp_path / "imagenet", {"n01440764": 1, "n01443537": 1})
    read_sets([("clustering", "imagenet")], tmp_path)
    with pytest.raises(UserError, match=r"called n01440764 .*Put a classnames\.txt"):
        read_sets([("zeroshot", "imagenet")], tmp_path)


def test_linked_class_folders_are_seen_by_reader_and_fingerprint(tmp_path):
    real = write_class_folders(tmp_path / "real", {"a": 2, "b": 2})
    (tmp_path / "root/set").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "root/set" / name).symlink_to(real / name)
        (tmp_path / "root/set" / name / "._0.jpg").write_bytes(b"")
    before = read_labeled("set", None, tmp_path / "root")
    assert len(before.images) == 4
    next(path for path in (real / "a").iterdir() if not path.name.startswith(".")).write_bytes(b"other")
    assert read_labeled("set", None, tmp_path / "root").revision != before.revision


def test_class_folders(tmp_path):
    write_class_folders(tmp_path / "birds" / "test", {"blue_tit": 2, "robin": 3})
    (tmp_path / "birds" / "test" / "robin" / "notes.txt").write_text("no image")
    data = read_labeled("birds", None, tmp_path)
    assert list(data.class_names) == ["blue tit", "robin"]
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.images.name(4) == "robin/2.png"


def test_revision_changes_with_the_files(tmp_path):
    folder = write_class_folders(tmp_path / "birds", {"a": 2, "b": 1})
    before = read_labeled("birds", None, tmp_path).revision
    assert read_labeled("birds", None, tmp_path).revision == before
    Image.new("RGB", (9, 9)).save(folder / "a" / "0.png")
    assert read_labeled("birds", None, tmp_path).revision != before


def test_samples_of_several_formats(tmp_path):
    images = photographs(8, side=40)
    samples = [{"png": encoded(image, "PNG"), "cls": b"0"} for image in images[:7]]
    jpeg = {"JPG": encoded(images[7]), "cls": b"1"}
    for number, order in enumerate(([jpeg, *samples], [*samples, jpeg])):
        write_shards(tmp_path / f"mixed{number}", order, class_names=NAMES)
        data = read_labeled(f"mixed{number}", None, tmp_path)
        assert data.labels.tolist() == [int(sample["cls"]) for sample in order]
        for index, sample in enumerate(order):
            assert data.images.read(index) == (sample.get("png") or sample["JPG"])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            {"png": b"x", "jpg": b"y", "cls": b"0"},
            r"sample \w+ of .*0\.tar holds \.png, \.jpg, \.cls; expected one image",
        ),
        ({"png": b"x", "cls": b"zero"}, r"\.cls: invalid literal for int.*'zero'"),
        ({"png": b"x", "cls": b"\xff"}, r"sample \w+ of .*0\.tar: \.cls: .*utf-8"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, sample, message):
    write_shards(tmp_path / "dtd", [sample], class_names=NAMES)
    with pytest.raises(UserError, match=message):
        read_labeled("dtd", None, tmp_path)


def test_other_files_under_the_same_names_are_read_again(tmp_path):
    for label in (b"0", b"1"):
        write_shards(tmp_path / "dtd", [{"png": b"x", "cls": label}], class_names=NAMES)
        assert read_labeled("dtd", None, tmp_path).labels.tolist() == [int(label)]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("test/1.tar", r"lacks .*test/1.tar: .*nshards.txt says 2 shards. Layout: test/nshards.txt"),
        ("classnames.txt", r"lacks .*classnames.txt. Expected"),
        ("zeroshot_classification_templates.txt", r"lacks .*zeroshot_classification_templates.txt"),
        ("test/nshards.txt", r"lacks .*nshards.txt"),
    ],
)
def test_missing_files_are_named(tmp_path, remove, message):
    (write_classification(tmp_path / "dtd", LABELS, NAMES) / remove).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        read_labeled("dtd", None, tmp_path)


def test_truncated_shard(tmp_path):
    path = write_classification(tmp_path / "dtd", LABELS, NAMES) / "test" / "1.tar"
    content = path.read_bytes()
    for length in (0, 3000, 512 * 2, len(content) - 1024):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"test/1\.tar is truncated"):
            read_labeled("dtd", None, tmp_path)


def test_class_list_must_match_the_labels(tmp_path):
    write_classification(tmp_path / "dtd", LABELS, NAMES[:2])
    with pytest.raises(ValueError, match=r"labels \[2\] have no name: classnames.txt of .* lists 2 classes"):
        read_labeled("dtd", None, tmp_path)
    write_class_folders(tmp_path / "birds", {"a": 1, "b": 1})
    (tmp_path / "birds" / "classnames.txt").write_text("blue tit\n")
    with pytest.raises(ValueError, match=r"names 1 classes, and there are 2"):
        read_labeled("birds", None, tmp_path)


def test_types_are_not_confused(tmp_path):
    write_retrieval(tmp_path / "flickr30k", [["a"], ["b"]])
    write_classification(tmp_path / "dtd", LABELS, NAMES)
    with pytest.raises(ValueError, match=r"is a retrieval set"):
        read_labeled("flickr30k", None, tmp_path)
    with pytest.raises(ValueError, match=r"is a classification set"):
        read_captioned("dtd", None, tmp_path)


def test_image_without_caption_is_named(tmp_path):
    write_retrieval(tmp_path / "flickr30k", [["a"], [" "]])
    with pytest.raises(ValueError, match=r"s0000001 has no caption"):
        read_captioned("flickr30k", None, tmp_path)


def test_template_needs_its_place(tmp_path):
    folder = write_classification(tmp_path / "dtd", LABELS, NAMES)
    (folder / "zeroshot_classification_templates.txt").write_text("a photo.\n")
    with pytest.raises(ValueError, match=r"'a photo\.' lacks \{c\}"):
        read_labeled("dtd", None, tmp_path)


def test_folder_of_nothing(tmp_path):
    (tmp_path / "dtd").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"neither in CLIP_benchmark's layout .* nor a folder of class folders"
    ):
        read_labeled("dtd", None, tmp_path)
    write_class_folders(tmp_path / "birds", {"a": 1, "b": 0})
    with pytest.raises(ValueError, match=r"birds/b holds no image"):
        read_labeled("birds", None, tmp_path)


def test_nowhere_to_be_found_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"dtd.*wds_vtab-dtd.*the hub's 'clip-benchmark/wds_vtab-dtd'"):
        read_labeled("dtd", "clip-benchmark/wds_vtab-dtd", tmp_path)


def test_labels_are_whole_numbers(tmp_path):
    write_shards(
        tmp_path / "dtd",
        [{"png": encoded(image, "PNG"), "txt": b"no label"} for image in photographs(2, side=40)],
        class_names=NAMES,
    )
    with pytest.raises(ValueError, match=r"expected one image and \.cls"):
        read_labeled("dtd", None, tmp_path)
