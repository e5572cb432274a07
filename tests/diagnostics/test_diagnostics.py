"""Scatter and the first theorem's bound by hand; predictions against a plain loop; the command on tiny models."""

import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import SiglipVisionModel

from dcr_hf import FrozenDenoiser
from dcr_hf.diagnostics.__main__ import main
from dcr_hf.diagnostics.predictions import _probes, choose_images, embedding_gram, prediction_gram
from dcr_hf.diagnostics.scatter import compare, over_seeds, scatter, slopes, squared_distances
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector
from helpers.evaluation_layouts import write_class_folders, write_classification
from helpers.tiny_models import CONDITION_WIDTH, EMBEDDING_WIDTH

LABELS = np.array([0, 0, 1, 1])


def gram(*points, origin=0.0):
    points = np.array(points, dtype=float).reshape(len(points), -1) - origin
    return points @ points.T


@pytest.mark.parametrize("origin", [0.0, 6.5, -100.0])
def test_scatter_by_hand_from_any_origin(origin):
    """Means 1 and 12, of all 6.5: (1 + 1 + 4 + 4) / 4 within, 5.5^2 between."""
    assert scatter(gram(0, 2, 10, 14, origin=origin), LABELS) == pytest.approx((2.5, 30.25))
    assert squared_distances(gram(0, 2, 10, origin=origin)) == pytest.approx([4, 100, 64])


def test_unequal_classes_count_by_their_size():
    """Means 0 and 8, of all 2: one of four at 6^2, three at 2^2."""
    assert scatter(gram(-1, 0, 1, 8), np.array([5, 5, 5, 7])) == pytest.approx((0.5, 12.0))


def test_the_bound_by_hand():
    """Embeddings 0, 2, 10, 14 and predictions 0, 1, 10, 28: the first two come nearest to each other, by a half. The
    means 1 and 12 become 0.5 and 19."""
    found = compare(gram(0, 2, 10, 14), gram(0, 1, 10, 28), LABELS)
    within, between = found["within"], found["between"]
    assert (within["m"], within["bound"]) == pytest.approx((0.5, 4))
    assert within["ratio"] == pytest.approx(2.5 / 40.625)  # (0.25 + 0.25 + 81 + 81) / 4
    assert within["share_of_bound"] == pytest.approx(2.5 / 40.625 / 4)
    assert (between["m"], between["bound"]) == pytest.approx((18.5 / 11, (11 / 18.5) ** 2))
    assert between["share_of_bound"] == pytest.approx(1)  # of two classes there is one pair
    summary = over_seeds([found, compare(gram(0, 2, 10, 14), gram(0, 3, 10, 28), LABELS)])
    # The second one's least is from 3 to 10 where the embeddings go from 2 to 10.
    assert summary["within"]["m"] == pytest.approx({"mean": (1 / 2 + 7 / 8) / 2, "std": (7 / 8 - 1 / 2) / 2})


@pytest.mark.parametrize("seed", range(5))
def test_no_map_breaks_the_bound(seed):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(30, 6))
    mapped = np.tanh(points @ generator.normal(size=(6, 9)))
    found = compare(points @ points.T, mapped @ mapped.T, np.arange(30) % 4)
    assert all(0 < way["share_of_bound"] <= 1 + 1e-9 for way in found.values())


def test_between_classes_the_means_need_a_bound_of_their_own():
    """Two classes that cross each other: all four points stay apart, their means nearly fall together."""
    embeddings, predictions = gram(0, 1, 2, 3), gram((1, 0), (-1, 0), (0.1, 1), (0.1, -1))
    of_points, of_means = slopes(embeddings, predictions, LABELS)
    ratio = compare(embeddings, predictions, LABELS)["between"]["ratio"]
    assert of_points == pytest.approx(np.sqrt(0.9**2 + 1) / 3)
    assert ratio == pytest.approx(1 / 0.05**2) and ratio > of_points**-2
    assert of_means == pytest.approx(0.1 / 2) and ratio <= of_means**-2 * (1 + 1e-9)


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="all images have one embedding"):
        slopes(gram(1, 1, 1, 1), gram(0, 1, 2, 3), LABELS)
    with pytest.raises(ValueError, match="two images with different embeddings have one prediction"):
        slopes(gram(0, 1, 2, 3), gram(0, 0, 2, 3), LABELS)
    # One embedding twice says nothing of the slope.
    assert slopes(gram(0, 0, 2, 4), gram(0, 1, 2, 4), LABELS)[0] == pytest.approx(0.5)


def test_predictions_are_those_of_a_plain_loop(sd_folder):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    generator = torch.Generator().manual_seed(0)
    conditions = torch.randn(7, CONDITION_WIDTH, generator=generator)
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=generator)
    before = torch.random.get_rng_state()
    found = prediction_gram(denoiser, conditions, pixels, probes=3, seed=5, batch_size=4)
    noisy, timesteps = _probes(denoiser, pixels, 3, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [int(t) // 334 for t in timesteps] == [0, 1, 2]  # spread over the schedule
    expected = []
    for condition in conditions:
        ofcondition = [
            F.normalize(denoiser.predict(n[None], t[None], condition[None]).flatten().double(), dim=0)
            for n, t in zip(noisy, timesteps, strict=True)
        ]
        expected.append(torch.cat(ofcondition) / 3**0.5)
    expected = torch.stack(expected)
    expected = squared_distances((expected @ expected.T).numpy())
    np.testing.assert_allclose(squared_distances(found), expected, rtol=1e-3)
    again = prediction_gram(denoiser, conditions, pixels, probes=3, seed=5, batch_size=7)
    np.testing.assert_allclose(found, again, atol=1e-6 * np.abs(found).max())
    other = prediction_gram(denoiser, conditions, pixels, probes=3, seed=6, batch_size=7)
    assert np.abs(found - other).max() > 1e-2 * np.abs(found).max()


def test_embeddings_are_at_unit_length():
    points = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, -2.0]])
    assert squared_distances(embedding_gram(points)) == pytest.approx([0, 3.6, 3.6])


def test_images_are_chosen_by_class_and_the_same_every_time():
    labels = np.repeat([3, 1, 2, 8], [5, 1, 4, 9])
    rows = choose_images(labels, classes=3, images_per_class=4)
    assert np.array_equal(rows, choose_images(labels, classes=3, images_per_class=4))
    present, counts = np.unique(labels[rows], return_counts=True)
    assert len(present) == 3 and all(
        count == min(4, (labels == p).sum()) for p, count in zip(present, counts, strict=True)
    )
    for wrong in (np.zeros(5, int), np.arange(5)):
        with pytest.raises(ValueError, match="needs two classes, and two images of one"):
            choose_images(wrong, 3, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clip_folder):
    """What both stages leave."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    projector = Projector(EMBEDDING_WIDTH["clip"], CONDITION_WIDTH)
    ConditionModel(encoder, projector).save_trained(folder / "stage1")
    encoder.add_lora(rank=2, alpha=2, dropout=0.0)
    for name, parameter in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    ConditionModel(encoder, projector.requires_grad_(False)).save_trained(folder / "stage2")
    return folder


def arguments(encoder, trained, denoiser, data, out):
    fixed = [
        "--probes",
        "2",
        "--seeds",
        "0",
        "4",
        "--workers",
        "0",
        "--images_per_class",
        "4",
        "--output_dir",
        str(out),
    ]
    given = {"encoder": encoder, "projector": trained / "stage1", "denoiser": denoiser, "data": data}
    return ["scatter", *(str(word) for name, value in given.items() for word in (f"--{name}", value)), *fixed]


@pytest.mark.parametrize("layout", ["folders", "shards"])
def test_the_command_writes_numbers_a_table_and_a_picture(clip_folder, sd_folder, trained, tmp_path, capsys, layout):
    if layout == "folders":
        data = write_class_folders(tmp_path / "pets", {"cat": 5, "dog": 4, "eel": 2})
    else:
        data = write_classification(tmp_path / "pets", [0, 1, 2] * 4, ["cat", "dog", "eel"])
    results = []
    for encoder in (clip_folder, trained / "stage2"):
        main(arguments(encoder, trained, sd_folder, data, out := tmp_path / encoder.name))
        printed, result = capsys.readouterr().out, json.loads((out / "scatter.json").read_text())
        assert (out / "scatter.md").read_text().strip() in printed
        assert (out / "scatter.png").read_bytes().startswith(b"\x89PNG")
        results.append(result)
    assert [result["measured"]["images"] for result in results] == [10 if layout == "folders" else 12] * 2
    assert [bool(result["measured"]["encoder"]["trained"]) for result in results] == [False, True]
    for result in results:
        assert list(result["seeds"]) == ["0", "4"]
        one, two = (result["seeds"][seed]["within"] for seed in ("0", "4"))
        assert one["embeddings"] == two["embeddings"] and one["predictions"] != two["predictions"]
        assert 0 < one["share_of_bound"] <= 1
        mean = result["summary"]["within"]["predictions"]["mean"]
        assert mean == pytest.approx((one["predictions"] + two["predictions"]) / 2)
    before, after = (result["summary"]["within"]["embeddings"]["mean"] for result in results)
    assert before != pytest.approx(after, rel=1e-3)


def test_mistakes_are_one_line(clip_folder, siglip_folder, sd_folder, trained, tmp_path, capsys):
    data = write_class_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    alone = tmp_path / "tower"
    SiglipVisionModel.from_pretrained(siglip_folder).save_pretrained(alone)
    shutil.copy(siglip_folder / "preprocessor_config.json", alone)
    cases = [
        (siglip_folder, trained, sd_folder, data, "this encoder's embeddings have width 24"),
        (clip_folder, tmp_path, sd_folder, data, "holds no projector"),
        (clip_folder, trained, tmp_path, data, "lacks unet"),
        (clip_folder, trained, sd_folder, tmp_path / "nothing", "is neither a folder here nor a hub id"),
        (alone, trained, sd_folder, data, "not the vision tower alone"),
    ]
    capsys.readouterr()
    for *given, message in cases:
        with pytest.raises(SystemExit) as ended:
            main(arguments(*given, tmp_path / "out"))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    (data / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        main(arguments(clip_folder, trained, sd_folder, data, tmp_path / "out"))
    assert "error: cat/0.png: no JPEG" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_errors_of_the_program_keep_their_traceback(clip_folder, sd_folder, trained, tmp_path, monkeypatch):
    data = write_class_folders(tmp_path / "pets", {"cat": 2, "dog": 2})
    for kind in (RuntimeError, ValueError, OSError):
        monkeypatch.setattr("dcr_hf.diagnostics.__main__.compare", Mock(side_effect=kind("a bug")))
        with pytest.raises(kind, match=r"^a bug$"):
            main(arguments(clip_folder, trained, sd_folder, data, tmp_path / "out"))
