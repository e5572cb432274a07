"""Every option is accounted for: it changes the result, it does not, or it is refused."""

import dataclasses
import json
import os

import pytest
from transformers import TrainingArguments

from dcr_hf import DCRConfig, Recipe
from dcr_hf.config.options import (
    GROUPS,
    Help,
    Role,
    facts_of,
    facts_of_stage,
    option,
    options_of,
    refuse_without_effect,
)
from dcr_hf.config.transformers_options import CHANGE_RESULT, NEUTRAL, REFUSED
from dcr_hf.errors import UserError
from dcr_hf.llava.config import LlavaRecipe, LlavaTraining
from dcr_hf.objectives import OBJECTIVES
from helpers.runs import short_run

KINDS = (Recipe, DCRConfig, LlavaRecipe, LlavaTraining)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_role(kind):
    options = list(options_of(kind))
    assert len(options) > 12
    assert [o.name for o in options if o.role is None] == []


def test_an_option_that_transformers_adds_has_none():
    @dataclasses.dataclass
    class Later(DCRConfig):
        quantum_steps: int = 0

    assert [o.name for o in options_of(Later) if o.role is None] == ["quantum_steps"]


def test_no_option_of_transformers_is_classified_twice():
    assert not CHANGE_RESULT & NEUTRAL and not (CHANGE_RESULT | NEUTRAL) & REFUSED.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_our_options_have_a_group_and_help_that_stands_alone(kind):
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = [field for field in dataclasses.fields(kind) if isinstance(field.metadata.get("help"), Help)]
    assert {field.name for field in dataclasses.fields(kind)} - theirs <= {field.name for field in ours}
    for field in ours:
        text = field.metadata["help"]
        assert text.group in GROUPS, field.name
        assert text[0].isupper() or text.split(":")[0].split(".")[0].split()[0] in str(field.type), (field.name, text)
        assert text.endswith("."), (field.name, text)


def test_the_objectives_choices_are_the_registrys():
    named = dataclasses.fields(DCRConfig)
    choices = next(field.type for field in named if field.name == "objective").__args__
    assert set(choices) == set(OBJECTIVES)


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="unknown group 'misc'"):
        option(1, "A number.", "misc")


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"max_steps": 3}, "--max_steps 3 has no effect here: give --stage1_max_steps, --stage2_max_steps"),
        ({"learning_rate": 5e-6}, "give --stage1_learning_rate, --stage2_learning_rate"),
        ({"num_train_epochs": 1}, "give --stage1_max_steps"),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-2"}, "resumes from the newest complete checkpoint"),
        ({"hub_strategy": "end"}, "--push_to_hub uploads the exported encoder"),
        ({"neftune_noise_alpha": 5.0}, "token embeddings of language models"),
        ({"save_only_model": True}, "a resume would not be exact"),
        ({"do_train": True}, "always trains what --stage names"),
        ({"do_eval": True}, "recipes/evaluate.py"),
        ({"label_smoothing_factor": 0.1}, "leave it out"),
    ],
)
def test_what_has_no_effect_is_refused_with_the_right_name(tmp_path, given, instead):
    args = DCRConfig(output_dir=str(tmp_path), use_cpu=True, **given)
    with pytest.raises(UserError, match=instead):
        refuse_without_effect(args)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_graphs_whose_outputs_the_next_chunk_would_overwrite_are_refused(tmp_path, mode):
    with pytest.raises(UserError, match=r"--torch_compile_mode .* records CUDA graphs.*max-autotune-no-cudagraphs"):
        short_run(tmp_path, torch_compile_mode=mode)


def test_a_warm_up_that_the_schedule_ignores_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--warmup_steps is 3, and --lr_scheduler_type constant has no warm-up"):
        short_run(tmp_path, warmup_steps=3)


@pytest.mark.parametrize("kind", [DCRConfig, LlavaTraining])
def test_defaults_are_not_refused(kind, tmp_path):
    refuse_without_effect(kind(output_dir=str(tmp_path), use_cpu=True))


def test_evaluation_during_training_is_not_taken_for_do_eval(tmp_path):
    args = DCRConfig(output_dir=str(tmp_path), use_cpu=True, eval_benchmarks=["mmvp_vlm"], eval_steps=5)
    assert args.do_eval
    refuse_without_effect(args)


def test_evaluation_comes_with_the_checkpoints_unless_its_steps_are_given(tmp_path):
    """transformers' default, --logging_steps, would evaluate every few seconds."""
    options = {"output_dir": str(tmp_path), "use_cpu": True, "eval_benchmarks": ["mmvp_vlm"], "save_steps": 30}
    assert DCRConfig(**options).eval_steps == 30
    assert DCRConfig(**options, eval_steps=5).eval_steps == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tf32", False),
        ("torch_compile_mode", "default"),
        ("optim_args", "fused=False"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("temperature", 0.2),
        ("seed", 7),
        ("dataloader_num_workers", 1),
        ("load_best_model_at_end", True),
    ],
)
def test_what_changes_the_result_is_a_fact(tmp_path, name, value):
    args = short_run(tmp_path)
    before = facts_of(args)
    setattr(args, name, value)
    after = facts_of(args)
    assert {key for key in after if before.get(key) != after[key]} == {name}


def test_deepspeed_s_contents_are_a_fact_not_its_path(tmp_path):
    args, recipe = short_run(tmp_path / "out"), Recipe(encoder="e")
    for name, stage in (("a", 2), ("copy", 2), ("other", 3)):
        (tmp_path / name).write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    facts = []
    for config in (*(str(tmp_path / name) for name in ("a", "copy", "other")), {"zero_optimization": {"stage": 2}}):
        args.deepspeed = config
        facts.append(facts_of_stage(recipe, args))
    assert facts[0] == facts[1] == facts[3] != facts[2]


@pytest.mark.parametrize("name", ["output_dir", "logging_steps", "save_steps", "report_to", "preview_steps"])
def test_what_does_not_change_it_is_none(tmp_path, name):
    assert name not in facts_of(short_run(tmp_path))


def test_steps_are_a_fact_where_the_schedule_depends_on_them(tmp_path):
    assert "max_steps" not in facts_of(short_run(tmp_path))
    assert "max_steps" not in facts_of(short_run(tmp_path, lr_scheduler_type="constant"))
    assert facts_of(short_run(tmp_path, lr_scheduler_type="cosine"))["max_steps"] == 3


def test_roles_of_a_recipe():
    roles = {o.name: o.role for o in options_of(Recipe)}
    assert roles["encoder"] is Role.RESULT and roles["stage1_max_steps"] is Role.STAGE
    assert roles["dry_run"] is Role.NEUTRAL


@pytest.mark.parametrize(
    ("launched", "given", "ran"),
    [
        ("bf16", {"bf16": False}, "no"),
        ("no", {"bf16": True}, "bf16"),
        ("bf16", {}, "bf16"),
        ("no", {}, "no"),
        ("bf16", {"fp16": False}, "bf16"),
    ],
)
def test_the_option_decides_the_precision_and_the_launcher_only_without_one(
    tmp_path, monkeypatch, launched, given, ran
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    args = DCRConfig(output_dir=str(tmp_path), use_cpu=True, **given)
    assert args.precision == ran and args.bf16 is (ran == "bf16")
    assert args.mixed_precision == ran  # what the Trainer hands to accelerate
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == launched  # the launcher's word for other configs stays


def test_a_precision_that_nothing_here_trains_in_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="--mixed_precision is fp8"):
        DCRConfig(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0"),
        ({"weight_decay": -1.0}, "--weight_decay is -1.0; it must be 0 or more"),
        ({"lora_dropout": 1.0}, "--lora_dropout is 1.0"),
        ({"pair_chunk_size": "many"}, "--pair_chunk_size is many"),
        ({"pair_chunk_size": -1}, "--pair_chunk_size is -1"),
        ({"max_bad_fraction": 1.0}, "--max_bad_fraction is 1.0"),
        ({"logging_nan_inf_filter": True}, "--logging_nan_inf_filter must stay false"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "options of the Trainer: "),
        ({"report_to": "tensorboard", "save_strategy": "sometimes"}, "options of the Trainer: "),
    ],
)
def test_values_that_are_wrong_are_a_users_mistake(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        DCRConfig(output_dir=str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize("given", [{"stage1_max_steps": -1}, {"stage2_learning_rate": 0.0}])
def test_a_recipes_budget_is_checked(given):
    with pytest.raises(UserError, match=f"--{next(iter(given))} is"):
        Recipe(encoder="owner/clip", **given)
