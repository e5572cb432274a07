"""A run's checkpoints are measured beside the original, at the distances that they have moved."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dcr_hf import Recipe
from dcr_hf.diagnostics.__main__ import main
from dcr_hf.diagnostics.curve import Point, choose, draw, markdown, read_curve
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY, measured, numbers
from dcr_hf.evaluation.scoring.results import Results, read_results
from dcr_hf.miniature.layouts import write_benchmarks
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.results import FIXED_IMAGES
from dcr_hf.run import run
from helpers.runs import options_of_a_run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_benchmarks(root, "dev", 32, per_category=2, train=16, test=40)
    return root


@pytest.fixture(scope="module")
def finished(clip_folder, sd_folder, shards_folder, tmp_path_factory):
    """A run with checkpoints at its steps 1, 2 and 3."""
    output = tmp_path_factory.mktemp("run") / "out"
    recipe = Recipe(str(clip_folder), str(sd_folder), str(shards_folder), stage1_max_steps=1, stage2_max_steps=3)
    recipe.stage2_learning_rate = 1e-2
    run(recipe, options_of_a_run(output, max_bad_fraction=0.5, save_strategy="steps", save_steps=1))
    return output


def test_every_checkpoint_is_measured_at_its_own_distance(finished, clip_folder, scenes, tmp_path, capsys):
    words = ["--benchmarks", "mmvp_vlm:scene_pairs", "clustering:scene_shape", "--data_root", str(scenes)]
    main(["curve", "--run", str(finished), *words, "--output_dir", str(tmp_path / "curve"), "--seeds", "0"])
    table = capsys.readouterr().out
    points = read_curve(tmp_path / "curve")
    assert [point.step for point in points] == [1, 2, 3] and f"| **{choose(points).step}** |" in table
    results = read_results(tmp_path / "curve")
    assert list(results.encoders) == ["original", "step 1", "step 2", "step 3"]
    images = load_file(finished / "stage2" / FIXED_IMAGES)["images"] / 255
    original = ImageEncoder.from_pretrained(str(clip_folder)).eval()
    log = json.loads((finished / "stage2" / "trainer_state.json").read_text())["log_history"]
    logged = {line["step"]: line["moved"] for line in log if "moved" in line}
    for point in points:
        assert point.measured == measured(results, f"step {point.step}")
        assert list(point.measured) == [P_ABILITY, D_ABILITY]
        # What training logged, on the same images.
        assert point.moved == pytest.approx(logged[point.step], rel=0.02)
    with torch.no_grad():
        trained = ImageEncoder.from_pretrained(str(finished / "clip-tiny-dcr")).eval()
        last = (1 - F.cosine_similarity(trained(images), original(images))).mean().item()
    assert points[-1].moved == pytest.approx(last, rel=0.02)
    assert (tmp_path / "curve" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "curve" / "report.html").exists()


def test_what_cannot_be_measured_is_refused(finished, tmp_path, refusal, shards_folder):
    words = ["--benchmarks", "clustering:nothing"]
    assert "run.json" in refusal(main, ["curve", "--run", str(tmp_path), *words])
    assert "nothing" in refusal(main, ["curve", "--run", str(finished), *words, "--data_root", str(tmp_path)])
    kept = [path.rename(tmp_path / path.name) for path in (finished / "stage2").glob("checkpoint-*")]
    try:
        assert "has no checkpoints to measure. Train with --save_steps" in refusal(
            main, ["curve", "--run", str(finished), *words]
        )
    finally:
        for path in kept:
            path.rename(finished / "stage2" / path.name)


def test_a_control_of_a_checkpoint_moves_as_far_as_the_checkpoint(finished, tmp_path, capsys, refusal):
    first = finished / "stage2" / "checkpoint-1"
    main(
        [
            "control",
            "--run",
            str(finished),
            "--seeds",
            "0",
            "--checkpoint",
            str(first),
            "--output_dir",
            str(tmp_path / "c"),
        ]
    )
    printed = capsys.readouterr().out
    moved, random = (
        float(re.search(pattern, printed)[1]) for pattern in (r"embeddings by ([\d.]+)", r"c/0  by ([\d.]+)")
    )
    log = json.loads((finished / "stage2" / "trainer_state.json").read_text())["log_history"]
    assert moved == pytest.approx(next(line["moved"] for line in log if line["step"] == 1), rel=0.02)
    assert random == pytest.approx(moved, rel=0.02)
    words = ["control", "--run", str(finished), "--checkpoint", str(tmp_path), "--output_dir", str(tmp_path / "d")]
    assert f"--checkpoint {tmp_path} holds no trained encoder" in refusal(main, words)


def point(step, p, d, moved=0.1):
    row = {"value": 0.5, "low": -0.1, "high": 0.1, "p": 0.5}
    return Point(step, "folder", moved, {P_ABILITY: row | {"change": p}, D_ABILITY: row | {"change": d}})


def test_the_rule_of_early_stopping():
    points = [point(1, 0.01, 0.02), point(2, 0.05, -0.03), point(3, 0.02, 0.01), point(4, 0.04, -0.02)]
    assert choose(points).step == 1  # 0.03, as the third: the earlier one
    assert choose([*points, point(5, 0.1, -0.06)]).step == 5
    other = Point(1, "", 0.1, {"zeroshot cifar10": {"change": 0.5}})
    assert choose([other, Point(2, "", 0.1, {"zeroshot cifar10": {"change": 0.6}})]).step == 2
    assert "| **1** | 0.1000 | 50.0, +1.0 (-10.0 to +10.0) |" in markdown(points)
    (axes,) = draw(points).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [P_ABILITY, D_ABILITY]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines[P_ABILITY].get_xdata()) == [0, 0.1, 0.1, 0.1, 0.1]
    assert list(lines[D_ABILITY].get_ydata()) == pytest.approx([0, 2, -3, 1, -2])


def test_the_headline_numbers():
    def row(benchmark, dataset, metric):
        return {"encoder": "a", "benchmark": benchmark, "dataset": dataset, "metric": metric, "value": 0.5}

    rows = [row("mmvp_vlm", "all", "pair_accuracy"), row("mmvp_vlm", "Texts", "pair_accuracy")]
    rows += [row("clustering", "a", "nmi"), row("clustering", "a", "acc"), row("zeroshot", "b", "acc1")]
    found = numbers(Results(results=rows))
    assert list(found) == [P_ABILITY, D_ABILITY, "zeroshot b"]
    assert found[D_ABILITY] == ("clustering", "a", "nmi") and found[P_ABILITY] == ("mmvp_vlm", "all", "pair_accuracy")
    rows += [row("clustering", "c", "nmi"), row("clustering", "mean", "nmi")]
    found = numbers(Results(results=rows))
    assert list(found) == [P_ABILITY, D_ABILITY, "clustering a", "zeroshot b", "clustering c"]
    assert found[D_ABILITY] == ("clustering", "mean", "nmi")
    assert measured(Results(results=rows), "a")[P_ABILITY] == {"value": 0.5, "change": 0, "low": 0, "high": 0, "p": 1}
