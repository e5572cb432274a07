"""A run as plans: what each stage trains, from which projector, with whose budget."""

from pathlib import Path

import pytest
import torch

from dcr_hf import DCRConfig, Recipe
from dcr_hf.errors import UserError
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.plan import plan_stages
from helpers.tiny_models import CONDITION_WIDTH


def plans_of(output, recipe=None, **options):
    recipe = {"encoder": "owner/clip", "stage1_max_steps": 7, "stage2_max_steps": 5} | (recipe or {})
    return plan_stages(Recipe(**recipe), DCRConfig(output_dir=str(output), use_cpu=True, **options))


@pytest.mark.parametrize(
    ("stage", "names", "trains", "steps"),
    [
        ("1", ["stage1"], ["the projector"], [7]),
        ("2", ["stage2"], ["the encoder"], [5]),
        ("all", ["stage1", "stage2"], ["the projector", "the encoder"], [7, 5]),
        ("end_to_end", ["end_to_end"], ["the projector and the encoder"], [5]),
    ],
)
def test_what_each_stage_trains(tmp_path, stage, names, trains, steps):
    plans = plans_of(tmp_path, {"stage": stage})
    assert [plan.name for plan in plans] == names
    assert [plan.trains for plan in plans] == trains
    assert [plan.args.max_steps for plan in plans] == steps
    assert [plan.folder for plan in plans] == [tmp_path / name for name in names]
    assert [plan.summary()["steps"] for plan in plans] == steps


def test_where_the_projector_comes_from(tmp_path):
    assert [plan.projector for plan in plans_of(tmp_path)] == [None, tmp_path / "stage1"]
    given = plans_of(tmp_path, {"stage": "2", "projector": "elsewhere"})
    assert given[0].projector == Path("elsewhere")
    assert plans_of(tmp_path, {"stage": "2"}, objective="contrastive")[0].projector is None  # the denoiser is unused
    assert plans_of(tmp_path, {"stage": "end_to_end"})[0].projector is None


def test_the_stages_own_options_and_not_the_runs(tmp_path):
    run = DCRConfig(
        output_dir=str(tmp_path), use_cpu=True, keep_weight=0.5, eval_benchmarks=["mmvp_vlm"], eval_steps=5
    )
    first, second = plan_stages(Recipe(encoder="owner/clip", stage1_objective="reconstruction"), run)
    assert (first.args.objective, second.args.objective) == ("reconstruction", "dcr")
    assert (first.args.keep_weight, second.args.keep_weight) == (0.0, 0.5)
    assert (first.args.eval_strategy, second.args.eval_strategy) == ("no", "steps")
    assert run.objective == "dcr" and run.output_dir == str(tmp_path) and run.max_steps == -1
    assert first.facts["objective"] == "reconstruction" and first.facts["learning_rate"] == 1e-4


@pytest.mark.parametrize("stage", ["1", "2", "end_to_end"])
def test_the_model_has_what_is_trained_unfrozen_and_nothing_else(clip_folder, tmp_path, stage):
    [plan] = plans_of(tmp_path, {"stage": stage, "encoder": str(clip_folder)})
    model = plan.build_model(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, untrained=True)
    assert model.trains_projector is plan.trains_projector and model.trains_encoder is plan.trains_encoder
    again = plan.build_model(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, untrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_projector_that_is_not_there_is_a_users_mistake(clip_folder, tmp_path):
    [plan] = plans_of(tmp_path, {"stage": "2", "encoder": str(clip_folder)})
    with pytest.raises(UserError, match="holds no projector"):
        plan.build_model(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH)


def test_finished_and_resumable_are_read_from_disk(tmp_path):
    first, second = plans_of(tmp_path)
    assert not first.finished and first.checkpoint is None
    (first.folder / "checkpoint-3").mkdir(parents=True)
    assert first.checkpoint is None  # incomplete
    (first.folder / "checkpoint-3" / "complete.json").write_text("{}")
    assert first.checkpoint == first.folder / "checkpoint-3"
    (first.folder / "projector").mkdir()
    (first.folder / "projector" / "model.safetensors").touch()
    assert first.finished and not second.finished
