"""Denoisers whose files are broken are refused by name; an error of our own keeps its kind."""

import json
import re
import shutil

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dcr_hf.denoiser import FrozenDenoiser, check_denoiser
from dcr_hf.errors import UserError


@pytest.fixture
def folder(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "sd")


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_configuration_that_is_no_json_object(folder, file):
    for content, message in (("{", "denoiser: "), ("[]", "must hold a JSON object")):
        (folder / file).write_text(content)
        with pytest.raises(UserError, match=message):
            check_denoiser(str(folder))


@pytest.mark.parametrize("name", ["_class_name", "cross_attention_dim"])
def test_a_unet_whose_configuration_lacks_a_field(folder, name):
    file = folder / "unet" / "config.json"
    fields = json.loads(file.read_text())
    fields.pop(name)
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"denoiser .*[Ss]upported"):
        check_denoiser(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_cut_off(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"denoiser '.*sd': {part}"):
        FrozenDenoiser.from_pretrained(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_are_not_left_random(folder, part):
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    missing = min(weights)
    del weights[missing]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"denoiser '.*sd': {part} lacks 1 weights, such as .*{re.escape(missing)}"):
        FrozenDenoiser.from_pretrained(str(folder))


def test_a_tokenizer_that_cannot_be_read(folder):
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"denoiser '.*sd': tokenizer"):
        FrozenDenoiser.from_pretrained(str(folder))


def test_an_error_of_our_own_is_not_the_users(sd_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("our own")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match="our own") as error:
        FrozenDenoiser.from_pretrained(str(sd_folder))
    assert not isinstance(error.value, UserError)
