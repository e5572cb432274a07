"""What an option needs is tried before anything is loaded."""

import json

import pytest

from dcr_hf import Recipe, run
from dcr_hf.errors import UserError
from dcr_hf.training.requirements import check_trainer_options
from helpers.runs import short_run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"report_to": "wandb"}, "--report_to wandb needs a package that is not installed: pip install wandb"),
        ({"report_to": "wandbb"}, "--report_to wandbb is unknown. Did you mean wandb"),
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit: .*bitsandbytes"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min": 3}},
            "--lr_scheduler_type cosine_with_min_lr: ",
        ),
        (
            {"lr_scheduler_kwargs": {"cycles": 3}, "lr_scheduler_type": "cosine"},
            "--lr_scheduler_type cosine: .*cycles",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        check_trainer_options(short_run(tmp_path, **({"max_steps": -1, "learning_rate": 5e-5} | given)))


@pytest.mark.parametrize("given", [{}, {"optim": "adafactor"}, {"lr_scheduler_type": "cosine"}, {"optim": "sgd"}])
def test_what_can_be_used_passes(tmp_path, given):
    check_trainer_options(short_run(tmp_path, max_steps=-1, learning_rate=5e-5, **given))


def test_deepspeed_needs_a_launcher(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    args = short_run(tmp_path, max_steps=-1, learning_rate=5e-5)
    args.deepspeed = json.dumps({"zero_optimization": {"stage": 2}})
    with pytest.raises(UserError, match="--deepspeed needs a launcher"):
        check_trainer_options(args)


@pytest.mark.parametrize("dry_run", [False, True])
def test_it_is_said_before_anything_is_loaded(tmp_path, dry_run):
    """The models and the data of this recipe do not exist: their absence would be said later."""
    recipe = Recipe(encoder=str(tmp_path / "nowhere"), train_data=str(tmp_path / "nothing"), dry_run=dry_run)
    with pytest.raises(UserError, match="pip install wandb"):
        run.run(recipe, short_run(tmp_path / "out", max_steps=-1, learning_rate=5e-5, report_to="wandb"))
    assert not (tmp_path / "out").exists()
