"""Folders that cannot be used are refused by name before anything is written."""

import json
import shutil

import pytest
from transformers import BertConfig

from dcr_hf.llava.swap import swap
from helpers.tiny_llava import save_llama


@pytest.fixture
def output(tmp_path):
    """Where nothing may be written."""
    yield tmp_path / "made" / "out"
    assert not (tmp_path / "made").exists()


def altered(folder, target, **changes):
    """A copy with other values in its config.json; None removes one."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


@pytest.mark.parametrize("kind", ["llava_next", "video_llava", "vipllava", "llava_onevision", "qwen2_vl"])
def test_another_architecture_is_named(llava_folder, towers, tmp_path, output, kind):
    other = altered(llava_folder, tmp_path / "other", model_type=kind)
    with pytest.raises(ValueError, match=f"is a '{kind}' model, which is not supported"):
        swap(other, str(towers["clip-l-224"]), output)


@pytest.mark.parametrize(("kind", "text"), [("llava_llama", {}), ("llava", None)])
def test_the_original_codes_format_is_recognised(llava_folder, towers, tmp_path, output, kind, text):
    original = altered(llava_folder, tmp_path / "original", model_type=kind, text_config=text)
    with pytest.raises(ValueError, match=r"format of LLaVA's own code.*llava-hf.*mm_vision_tower"):
        swap(original, str(towers["clip-l-224"]), output)


def test_a_tower_of_another_kind_in_the_llava(llava_folder, towers, tmp_path, output):
    pixtral = altered(llava_folder, tmp_path / "pixtral", vision_config={"model_type": "pixtral"})
    with pytest.raises(ValueError, match="has a 'pixtral' tower"):
        swap(pixtral, str(towers["clip-l-224"]), output)


def test_a_llava_without_its_processor_or_weights(llava_folder, towers, tmp_path, output):
    bare = altered(llava_folder, tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    with pytest.raises((ValueError, OSError), match=r"processor"):
        swap(bare, str(towers["clip-l-224"]), output)
    empty = altered(llava_folder, tmp_path / "empty")
    for file in (tmp_path / "empty").glob("model*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks weights"):
        swap(empty, str(towers["clip-l-224"]), output)


def test_an_encoder_of_another_kind(llava_folder, tmp_path, output):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"is a 'bert' model; LLaVA's tower here is a CLIP or a SigLIP"):
        swap(str(llava_folder), str(tmp_path / "bert"), output)
    with pytest.raises(ValueError, match="is a 'llama' model"):
        swap(str(llava_folder), str(save_llama(tmp_path / "llama")), output)


def test_a_runs_folder_in_the_place_of_its_export(llava_folder, tmp_path, output):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*OUT/NAME-dcr-vision; python -m dcr_hf\.export"):
        swap(str(llava_folder), str(tmp_path / "run"), output)


def test_an_encoder_without_image_processor_or_with_one_of_another_size(llava_folder, towers, tmp_path, output):
    encoder = shutil.copytree(towers["clip-l-224"], tmp_path / "encoder")
    file = encoder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("224", "336"))
    with pytest.raises(ValueError, match="makes 336 pixels, its vision tower takes 224"):
        swap(str(llava_folder), str(encoder), output)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks an image processor"):
        swap(str(llava_folder), str(encoder), output)


def test_a_folder_that_is_there_is_not_written_over(llava_folder, towers, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        swap(str(llava_folder), str(towers["clip-l-224"]), tmp_path / "out")


@pytest.mark.parametrize("layer", [-3, 3, [-2, -3]])
def test_a_tower_with_too_few_layers_for_the_feature_layer(llava_folder, towers, tmp_path, output, layer):
    deep = altered(llava_folder, tmp_path / "deep", vision_feature_layer=layer)
    with pytest.raises(ValueError, match="has 2 layers, too few"):
        swap(deep, str(towers["clip-l-224"]), output)
