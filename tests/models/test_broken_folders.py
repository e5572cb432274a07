"""Folders whose files are broken are refused by name, before or while their weights are read."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.models import ImageEncoder, check_encoder, check_projector, load_dual_encoder, trained_base
from dcr_hf.models.projector import PROJECTOR_WEIGHTS
from dcr_hf.models.results import VISION_WEIGHTS


@pytest.fixture
def clip(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip")


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a valid JSON"), ('{"model_type": "unheard_of"}', "unheard_of"), ('{"model_type": "bert"}', "'bert'")],
)
def test_a_configuration_that_cannot_be_read_or_used(clip, content, message):
    (clip / "config.json").write_text(content)
    for read in (check_encoder, load_dual_encoder, ImageEncoder.from_pretrained):
        with pytest.raises(UserError, match=message):
            read(str(clip))


def test_a_configuration_with_a_value_of_another_type(clip):
    change(clip / "config.json", vision_config={"hidden_size": "wide"})
    with pytest.raises(UserError, match="hidden_size"):
        check_encoder(str(clip))


def test_weights_that_are_cut_off(clip):
    cut(clip / "model.safetensors")
    with pytest.raises(UserError, match=r"encoder '.*clip': .*incomplete"):
        load_dual_encoder(str(clip))


def test_weights_that_are_missing_or_of_another_shape(clip):
    weights = load_file(clip / "model.safetensors")
    change(clip / "config.json", projection_dim=7)
    with pytest.raises(UserError, match=r"text_projection.weight has the shape .* its config.json says \(7, "):
        load_dual_encoder(str(clip))
    weights.pop("visual_projection.weight")
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights, such as visual_projection.weight"):
        ImageEncoder.from_pretrained(str(clip))


def test_an_image_processor_that_cannot_be_read_or_makes_another_size(clip):
    file = clip / "preprocessor_config.json"
    change(file, crop_size={"height": 64, "width": 64})
    with pytest.raises(UserError, match="makes 64 pixels, its vision tower takes 32"):
        ImageEncoder.from_pretrained(str(clip))
    file.write_text("{")
    with pytest.raises(UserError, match=r"image processor: .*not a valid JSON"):
        ImageEncoder.from_pretrained(str(clip))


def test_a_result_of_stage_2_that_is_broken(clip_folder, tmp_path):
    (tmp_path / VISION_WEIGHTS).write_bytes(b"no safetensors")
    for read in (trained_base, lambda folder: load_dual_encoder(str(clip_folder), folder)):
        with pytest.raises(UserError, match=VISION_WEIGHTS):
            read(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no base model"):
        trained_base(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        trained_base(tmp_path)


def test_a_projector_that_is_missing_or_broken(tmp_path):
    with pytest.raises(NotFoundError, match="holds no projector"):
        check_projector(tmp_path, 24, 32)
    (tmp_path / PROJECTOR_WEIGHTS).touch()
    for content, message in (("[1]", "must hold a JSON object"), ("{", r"config\.json"), ("{}", "of width None")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            check_projector(tmp_path, 24, 32)
