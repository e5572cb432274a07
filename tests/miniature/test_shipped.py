"""The weights that the package brings: complete, small, and of the scenes that are drawn today."""

import json

import pytest

from dcr_hf.miniature.layouts import write_benchmarks
from dcr_hf.miniature.measure import measure_denoiser, measure_encoders, scores
from dcr_hf.miniature.models import CLIP_FOLDER, DENOISER_FOLDERS, SHIPPED, SIZES

MEASURED = json.loads((SHIPPED / "measured.json").read_text())


def test_they_are_small_and_hold_no_pickle():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} == {".safetensors", ".json"}


def test_they_tell_how_to_make_them():
    run = MEASURED["run"]
    assert run["size"] == "mini" and run["seed"] == 1
    assert run["command"].startswith("python recipes/pretrain_miniature.py")


@pytest.mark.parametrize("kind", DENOISER_FOLDERS)
def test_the_denoiser_listens(kind):
    found, stored = measure_denoiser(SHIPPED / DENOISER_FOLDERS[kind], count=300), MEASURED["denoisers"][kind]
    full, empty, wrong = (found[f"noise_mse/{caption}"] for caption in ("full", "empty", "wrong"))
    assert full < empty < wrong
    assert full == pytest.approx(stored["noise_mse/full"], rel=0.1)
    assert found["vae_mse"] == pytest.approx(stored["vae_mse"], rel=0.1)


def test_the_encoder_knows_these_scenes_as_well_as_was_measured(tmp_path):
    """Fails when scenes are drawn or described otherwise than those that it was pretrained on."""
    write_benchmarks(tmp_path / "dev", "dev", SIZES["mini"].image_size, per_category=40, train=40, test=600)
    benchmarks = ["mmvp_vlm:scene_pairs", "zeroshot:scene_shape"]
    encoders = {"clip": str(SHIPPED / CLIP_FOLDER)}
    found = scores(measure_encoders(encoders, tmp_path / "dev", tmp_path / "report", benchmarks))["clip"]
    for name in ("mmvp_vlm/all/pair_accuracy", "zeroshot/scene_shape/acc1"):
        assert found[name][0] == pytest.approx(MEASURED["clip"][name][0], abs=0.05)
