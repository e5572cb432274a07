"""recipes/miniature.py from end to end on models a few steps old: training, measurements, the page, the sentence."""

import re
import subprocess
import sys

import pytest
import torch
from transformers import CLIPModel, CLIPVisionModel

from dcr_hf import FrozenDenoiser
from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.diagnostics.curve import read_curve
from dcr_hf.errors import WriteError
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.miniature import layouts, run
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.stages import projector_stage


@pytest.fixture
def launch(pretrained, tmp_path, monkeypatch):
    """The recipe's main in this process with small data; returns its output folder."""
    monkeypatch.setattr(run, "TRAINING_IMAGES", 24)
    write = layouts.write_benchmarks
    small = {"per_category": 2, "train": 80, "test": 60}
    monkeypatch.setattr(run, "write_benchmarks", lambda *args, **more: write(*args, **small))

    def launch(*words, stop=None):
        recipe = Recipe(
            encoder=str(pretrained / "clip-miniature"),
            denoiser=str(pretrained / "sd-miniature-v"),
            train_data=str(tmp_path / "scenes" / "train"),
            stage1_max_steps=1,
            stage2_max_steps=2,
            stage2_learning_rate=1e-2,
        )
        monkeypatch.setattr("sys.argv", ["miniature.py", "--use_cpu", "--per_device_train_batch_size", "3", *words])
        options = {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "report_to": "none"}
        options["save_steps"] = 1
        run.main(recipe, output_dir=str(tmp_path / "out"), **options)
        return tmp_path / "out"

    return launch


def test_it_trains_measures_and_reports_and_goes_on_where_it_stopped(launch, monkeypatch, capsys, tmp_path):
    def stop(*args):
        raise WriteError("no space left")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(run, "measure_encoders", stop)
        launch()
    assert ended.value.code == 2 and "no space left" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(run, "run", lambda *args: pytest.fail("trained again"))
        output = launch()
    printed = capsys.readouterr().out
    assert re.search(r"mmvp_vlm all pair_accuracy +\d", printed) and "linear_probe scene_count acc1" in printed
    assert re.search(
        r"P-Ability \(pairs\) (rose|fell|did not move beyond noise): [+-][\d.]+ points \(p .*random;", printed
    )
    assert f"The report: {output}/report/report.html" in printed
    page = (output / "report" / "report.html").read_text()
    assert "What the denoiser sees in the condition" in page and "The scenes" in page and "On the way" in page
    points = read_curve(output / "curve")
    assert [point.step for point in points] == [1, 2] and 0 < points[0].moved < points[1].moved
    for model, name in ((CLIPModel, "clip-miniature-dcr"), (CLIPVisionModel, "clip-miniature-dcr-vision")):
        _, report = model.from_pretrained(output / name, output_loading_info=True)
        assert not report["missing_keys"]

    with pytest.raises(SystemExit) as ended:
        launch()
    assert ended.value.code == 2 and "finished run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch("--train_data", str(tmp_path / "elsewhere"), "--overwrite_output_dir")
    assert "no such file or folder" in capsys.readouterr().err  # scenes are drawn at the recipe's own place only


def test_a_run_without_checkpoints_is_refused_before_it_begins(launch, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        launch("--save_strategy", "no")
    assert ended.value.code == 2 and "--save_strategy no leaves no checkpoints" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "scenes").exists()


def test_without_a_projector_the_page_has_no_conditions(launch):
    output = launch("--stage", "2", "--objective", "contrastive")
    page = (output / "report" / "report.html").read_text()
    assert "The scenes" in page and "What the denoiser sees in the condition" not in page


def test_the_page_shows_conditions_with_their_patches(pretrained, tmp_path, monkeypatch):
    folder = str(pretrained / "clip-miniature")
    recipe = Recipe(encoder=folder, denoiser=str(pretrained / "sd-miniature-v"))
    denoiser = FrozenDenoiser.from_pretrained(recipe.denoiser)
    model = projector_stage(ImageEncoder.from_pretrained(folder), denoiser.condition_width, 0, 0.25)
    model.save_trained(tmp_path / "stage1")
    shown = {}

    def clean_images(denoiser, images, kinds):
        shown.update(kinds, images=images)
        return {}

    monkeypatch.setattr(run, "clean_images", clean_images)
    args = DCRConfig(str(tmp_path), use_cpu=True, report_to="none", condition="patches", patch_keep_ratio=0.25)
    run._sections(recipe, args, folder, model.encoder.image_size)
    with torch.no_grad():
        encoded = model.eval()(shown["images"])
    length = denoiser.empty_prompt.shape[1]  # not 77: the miniature has a text encoder of its own
    expected = torch.cat([encoded.conditions[:, None].expand(-1, length, -1), encoded.tokens], dim=1)
    assert encoded.tokens.shape[:2] == (run.SHOWN_PREDICTIONS, model.kept_patches)
    for kind in ("own, before", "own, after"):
        torch.testing.assert_close(shown[kind], expected)
    assert shown["empty prompt"].shape == encoded.conditions.shape and not shown["empty prompt"].any()


def comparison(benchmark, dataset, metric, difference, p, encoder="enhanced"):
    return {
        "encoder": encoder,
        "benchmark": benchmark,
        "dataset": dataset,
        "metric": metric,
        "difference": difference,
        "low": difference - 0.01,
        "high": difference + 0.01,
        "p": p,
        "noise": p >= 0.05,
    }


@pytest.mark.parametrize(
    "pairs, nmi, sentence",
    [
        ((0.021, 0.03), (-0.05, 0.0004), "P-Ability (pairs) rose: +2.1 points (p = 0.030), -0.4 where the encoder"),
        ((0.1, 0.06), (0.05, 0.2), "P-Ability (pairs) did not move beyond noise: +10.0 points (p = 0.060), -0.4 "),
    ],
)
def test_the_sentence_follows_the_numbers(pairs, nmi, sentence):
    rows = [
        comparison("mmvp_vlm", "all", "pair_accuracy", *pairs),
        comparison("mmvp_vlm", "Texts", "pair_accuracy", 0.9, 0.001),
        comparison("clustering", "scene_shape", "nmi", *nmi),
        comparison("mmvp_vlm", "all", "pair_accuracy", -0.004, 0.5, "random"),
        comparison("clustering", "scene_shape", "nmi", -0.012, 0.5, "random"),
    ]
    sentence_found = run.verdict(Results(comparisons=rows))
    assert sentence_found.startswith(sentence) and sentence_found.endswith(
        "-1.2 where the encoder was moved as far at random."
    )


def test_importing_what_recipes_import_prints_nothing():
    code = "import dcr_hf.run, dcr_hf.miniature.run, dcr_hf.miniature.cli, dcr_hf.llava.run"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
