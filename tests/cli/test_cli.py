"""The command line: options from four sources, --help in groups, errors of one line."""

import re

import pytest

from dcr_hf import Recipe
from dcr_hf.cli import parse
from dcr_hf.config.options import GROUPS
from dcr_hf.errors import UserError
from helpers.programs import ROOT, run_program


@pytest.fixture(scope="module")
def printed():
    done = run_program(ROOT / "recipes" / "openai_vitl.py", "--help", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_has_our_groups_in_order_and_transformers_last(printed):
    found = [line.rstrip(":") for line in printed.splitlines() if line.rstrip(":") in GROUPS]
    assert found == list(GROUPS)


def test_options_stand_in_their_groups(printed):
    sections = re.split("|".join(rf"^{re.escape(title)}:$" for title in GROUPS), printed, flags=re.MULTILINE)
    assert len(sections) == len(GROUPS) + 1
    of = dict(zip(GROUPS, sections[1:], strict=True))
    assert "--encoder" in of["what to train on"] and "--stage1_max_steps" in of["budget"]
    assert "--noise_target" in of["the released code's quirks"] and "--adam_beta1" in of["transformers' own options"]
    assert "--adam_beta1" not in of["budget"]


@pytest.mark.parametrize("option", ["objective", "stage1_objective"])
def test_choices_are_listed(printed, option):
    assert f"--{option} {{dcr,reconstruction,contrastive,joint}}" in printed


def test_a_value_that_is_no_choice_is_one_line():
    with pytest.raises(UserError, match="argument --objective: invalid choice: 'dcrr'") as raised:
        parse(Recipe(encoder="x/y"), {}, ["--objective", "dcrr"])
    assert "\n" not in str(raised.value)


def test_yaml_words_stay_words(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("save_strategy: no\nview_flips: yes\nuse_cpu: true\noptim_args: null\nlogging_steps: 3\n")
    _, args = parse(Recipe(encoder="x/y"), {}, ["--config", str(file), "--output_dir", str(tmp_path)])
    assert args.save_strategy == "no" and args.view_flips is True and args.optim_args is None
    assert args.logging_steps == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "while parsing"), ("- 1\n- 2\n", "must hold 'name: value' lines"), ("5: 3\n", "unknown option '5'")],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=rf"run\.yaml.*{message}|{message}"):
        parse(Recipe(encoder="x/y"), {}, ["--config", str(file)])
    with pytest.raises(UserError, match=r"gone\.yaml"):
        parse(Recipe(encoder="x/y"), {}, ["--config", str(tmp_path / "gone.yaml")])


def test_an_internal_error_of_a_run_keeps_its_traceback(clip_folder, sd_folder, shards_folder, tmp_path, monkeypatch):
    from dcr_hf import run
    from dcr_hf.training import trainer

    def broken(*args):
        raise RuntimeError("deep inside")

    monkeypatch.setitem(trainer.OBJECTIVES, "dcr", broken)
    words = ["--encoder", clip_folder, "--denoiser", sd_folder, "--train_data", shards_folder]
    words += ["--output_dir", tmp_path / "out", "--stage1_max_steps", 1, "--per_device_train_batch_size", 4]
    words += ["--dataloader_num_workers", 0, "--use_cpu", "--report_to", "none"]
    monkeypatch.setattr("sys.argv", ["recipe.py", *map(str, words)])
    with pytest.raises(RuntimeError, match="deep inside"):
        run.main(Recipe(encoder="from/options"))
