"""`python -m dcr_hf.llava check`: the conditions of LLaVA's own code, each broken once."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPVisionModel

from dcr_hf.llava.contract import check_name, check_tower
from helpers.programs import run_program
from helpers.tiny_models import save_clip


@pytest.fixture
def clip(towers, tmp_path):
    return shutil.copytree(towers["clip-l-336"], tmp_path / "clip-tiny-dcr-vision")


def failures(folder):
    return {finding.about: finding.message for finding in check_tower(str(folder)) if not finding.holds}


def weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("tower", ["clip-l-224", "clip-l-336", "metaclip-h-224"])
def test_clip_towers_fit_as_dual_encoders_and_alone(towers, tmp_path, tower):
    assert failures(towers[tower]) == {}
    CLIPVisionModel.from_pretrained(towers[tower]).save_pretrained(tmp_path)
    shutil.copy(towers[tower] / "preprocessor_config.json", tmp_path)
    assert failures(tmp_path) == {}


def test_keys_without_the_prefix_are_found(clip):
    weights(clip, lambda tensors: {name.removeprefix("vision_model."): t for name, t in tensors.items()})
    assert "random value, with no error" in failures(clip)["keys"]


def test_missing_keys_and_other_shapes_are_found(clip):
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    tensors = load_file(clip / "model.safetensors")
    weights(clip, lambda found: found | {name: found[name][:3].clone()})
    assert failures(clip)["keys"] == f"{name} has the shape (3,); the configuration says (48,)."
    weights(clip, lambda found: {key: tensors[key] for key in found if key != name})
    assert f"1 of 39 weights are missing, such as {name}" in failures(clip)["keys"]


def test_weights_that_do_not_say_their_format_are_found(clip):
    save_file(load_file(clip / "model.safetensors"), clip / "model.safetensors")
    assert "does not say its format" in failures(clip)["keys"]
    (clip / "model.safetensors").unlink()
    assert "holds no weights" in failures(clip)["keys"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is missing"),
        ({"crop_size": None}, "has no crop_size"),
        ({"image_mean": None}, "has no image_mean"),
        ({"crop_size": {"height": 224, "width": 224}}, "crops to 224 pixels, the tower takes 336"),
        ({"crop_size": 224}, "crops to 224 pixels, the tower takes 336"),
    ],
)
def test_the_image_processors_fields(clip, change, message):
    file = clip / "preprocessor_config.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert message in failures(clip)["image processor"]


def test_one_layer_is_too_few(tmp_path):
    save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert failures(tmp_path).keys() == {"layers"}


@pytest.mark.parametrize(
    ("tower", "message"), [("siglip-384", "hub id with 'siglip' in it"), ("siglip-224", "this one makes 256")]
)
def test_a_siglip_is_sent_elsewhere(towers, tower, message):
    (told_of,) = failures(towers[tower]).values()
    assert message in told_of and "dcr_hf.llava swap" in told_of


def test_another_model_is_named(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert "a 'bert' model" in failures(tmp_path)["configuration"]


def test_what_the_releases_make_of_the_name(clip, monkeypatch):
    by_release = {finding.about: finding for finding in check_name(str(clip))}
    assert not by_release["LLaVA 1.1.1"].holds
    assert f"ln -s {clip.parent} openai; then --vision_tower openai/{clip.name}" in by_release["LLaVA 1.1.1"].message
    assert str(clip) in by_release["LLaVA 1.2.2"].message
    monkeypatch.chdir(clip.parent)
    (clip.parent / "openai").symlink_to(clip.parent)
    again = {finding.about: finding.holds for finding in check_name(f"openai/{clip.name}")}
    assert all(again.values()) and failures(f"openai/{clip.name}") == {}


def test_from_the_command_line(clip, towers, llava_folder, tmp_path):
    fit = run_program("-m", "dcr_hf.llava", "check", clip)
    assert fit.returncode == 0 and "fit for mm_vision_tower" in fit.stdout and "LLaVA-NeXT" in fit.stdout
    unfit = run_program("-m", "dcr_hf.llava", "check", towers["siglip-224"])
    assert unfit.returncode == 1 and "NOT fit" in unfit.stdout
    nowhere = run_program("-m", "dcr_hf.llava", "check", tmp_path / "nowhere")
    assert (
        nowhere.returncode == 2 and "is neither a folder here" in nowhere.stderr and "Traceback" not in nowhere.stderr
    )
    swap = ["-m", "dcr_hf.llava", "swap", "--llava", llava_folder, "--output"]
    kept = run_program(*swap, tmp_path / "kept", "--encoder", clip)
    assert kept.returncode == 0 and "576 tokens an image" in kept.stdout and "projector was kept" in kept.stdout
    new = run_program(*swap, tmp_path / "new", "--encoder", towers["siglip-384"])
    assert new.returncode == 0 and "24 and 36: the projector is NEW" in new.stdout
    assert f"recipes/llava15.py --llava {tmp_path / 'new'}" in new.stdout
    again = run_program(*swap, tmp_path / "new", "--encoder", towers["siglip-384"])
    assert again.returncode == 2 and "exists" in again.stderr and "Traceback" not in again.stderr
