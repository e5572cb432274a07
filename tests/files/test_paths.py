"""A path of the user's is one path, whichever option it is given to."""

import argparse
from pathlib import Path

import pytest

from dcr_hf import DCRConfig, Recipe
from dcr_hf.cli import parse
from dcr_hf.errors import UserError
from dcr_hf.export import export_folders
from dcr_hf.files import user_path


def test_the_home_folder_and_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a b=[c]") == tmp_path / "a b=[c]"
    with pytest.raises(argparse.ArgumentTypeError, match="empty"):
        user_path("")
    words = ["--encoder", "~/clip", "--train_data", "~/d", "--output_dir", "~/out", "--use_cpu"]
    recipe, args = parse(Recipe(encoder="x/y"), {}, words)
    assert isinstance(args, DCRConfig) and args.folder == tmp_path / "out"
    assert (recipe.encoder, recipe.train_data) == (str(tmp_path / "clip"), str(tmp_path / "d"))
    with pytest.raises(UserError, match="--train_data is empty"):
        parse(Recipe(encoder="x/y"), {}, ["--train_data", "", "--output_dir", "o", "--use_cpu"])


def test_the_working_folder_has_a_name(monkeypatch, tmp_path):
    (tmp_path / "my-clip").mkdir()
    monkeypatch.chdir(tmp_path / "my-clip")
    assert export_folders(".", "out") == (Path("out/my-clip-dcr"), Path("out/my-clip-dcr-vision"))
