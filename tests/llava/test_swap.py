"""Swapping LLaVA's vision tower: what changes, what does not, and that the result is used as any LLaVA is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration, SiglipVisionModel

from dcr_hf.export import ExportError
from dcr_hf.llava import folder as folder_module
from dcr_hf.llava.swap import swap
from dcr_hf.llava.weights import canonical
from helpers.images import photographs
from helpers.tiny_llava import GEOMETRIES, save_llava, transformers_5, write_weights
from helpers.tiny_models import MEAN, STD

VISION = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}


def tensors_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {canonical(name): tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module", params=list(GEOMETRIES))
def swapped(request, towers, llava_folder, tmp_path_factory):
    """(geometry, the tower's folder, what swap says)"""
    output = tmp_path_factory.mktemp("swapped") / "llava"
    return (
        GEOMETRIES[request.param],
        towers[request.param],
        swap(str(llava_folder), str(towers[request.param]), output),
    )


def ask(folder, text="USER: <image>\nWhat is this? ASSISTANT:"):
    """(model, inputs) for a photograph that is not square."""
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    image = photographs(1, side=96)[0].crop((0, 0, 96, 60))
    return model.eval(), processor(images=image, text=text, return_tensors="pt")


def test_image_tokens_are_as_many_as_features_and_it_generates(swapped):
    geometry, _, result = swapped
    model, inputs = ask(result.folder)
    assert result.image_tokens == model.config.image_seq_length == geometry.tokens
    assert (inputs.input_ids == model.config.image_token_id).sum() == geometry.tokens
    with torch.no_grad():
        features = model.get_image_features(pixel_values=inputs.pixel_values).pooler_output
        replies = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert features[0].shape == (geometry.tokens, 32)
    assert replies.shape[1] > inputs.input_ids.shape[1]


def test_image_features_are_the_enhanced_towers_under_its_own_image_processor(swapped):
    geometry, tower_folder, result = swapped
    model, inputs = ask(result.folder)
    tower = VISION[geometry.family].from_pretrained(tower_folder).eval()
    own = AutoProcessor.from_pretrained(tower_folder, backend="pil")
    own_pixels = own.image_processor(photographs(1, side=96)[0].crop((0, 0, 96, 60)), return_tensors="pt").pixel_values
    torch.testing.assert_close(inputs.pixel_values, own_pixels, rtol=0, atol=0)
    with torch.no_grad():
        hidden = tower(own_pixels, output_hidden_states=True).hidden_states[-2]
        expected = model.model.multi_modal_projector(hidden[:, 1:] if geometry.family == "clip" else hidden)
        found = model.get_image_features(pixel_values=inputs.pixel_values).pooler_output[0]
    torch.testing.assert_close(found, expected[0], rtol=0, atol=0)


def test_the_language_model_is_bit_identical_and_the_projector_kept_where_the_width_is(swapped, llava_folder):
    geometry, _, result = swapped
    before, after = tensors_of(llava_folder), tensors_of(result.folder)
    language = [name for name in before if name.startswith(("language_model.", "lm_head."))]
    assert len(language) > 15 and all(torch.equal(before[name], after[name]) for name in language)
    projector = {name: tensor for name, tensor in after.items() if name.startswith("multi_modal_projector.")}
    assert len(projector) == 4 and result.new_projector == (geometry.width != 24)
    if result.new_projector:
        assert projector["multi_modal_projector.linear_1.weight"].shape == (32, geometry.width)
        assert all(tensor.std() > 0.01 for tensor in projector.values())
    else:
        assert all(torch.equal(before[name], tensor) for name, tensor in projector.items())


def test_the_processor_and_the_configuration_say_the_same(swapped):
    geometry, _, result = swapped
    processor = json.loads((result.folder / "processor_config.json").read_text())
    strategy, additional = ("default", 1) if geometry.family == "clip" else ("full", 0)
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (14, additional)
    assert processor["vision_feature_select_strategy"] == strategy
    for image_processor in (processor["image_processor"], json.loads(read(result, "preprocessor_config.json"))):
        assert (image_processor["image_mean"], image_processor["image_std"]) == (MEAN, STD)
    config = json.loads(read(result, "config.json"))
    assert config["vision_feature_select_strategy"] == strategy and config["vision_feature_layer"] == -2
    assert config["vision_config"]["image_size"] == geometry.image_size
    assert config["vision_config"]["hidden_size"] == geometry.width


def read(result, name):
    return (result.folder / name).read_text()


def test_the_tokenizers_files_are_the_llavas_own(swapped, llava_folder):
    _, _, result = swapped
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert read(result, name) == (llava_folder / name).read_text()


@pytest.mark.parametrize("tower", ["clip-l-224", "siglip-224"])
def test_the_newer_layout_of_keys_stays_the_newer_one(llava_folder, towers, tmp_path, tower):
    newer = shutil.copytree(llava_folder, tmp_path / "newer")
    tensors = {k: t for file in newer.glob("*.safetensors") for k, t in load_file(file).items()}
    write_weights(newer, {transformers_5(name): tensor for name, tensor in tensors.items()}, shards=2)
    result = swap(str(newer), str(towers[tower]), tmp_path / "out")
    names = json.loads(read(result, "model.safetensors.index.json"))["weight_map"]
    prefixes = {name.split(".layers.")[0] for name in names if ".layers." in name}
    assert prefixes == {"model.vision_tower.encoder", "model.language_model"}
    model, inputs = ask(result.folder)
    assert model.generate(**inputs, max_new_tokens=1).shape[1] > inputs.input_ids.shape[1]


def test_weights_take_the_llavas_type(towers, tmp_path):
    source = save_llava(tmp_path / "half", towers["clip-l-224"])
    halves = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    write_weights(source, halves)
    result = swap(str(source), str(towers["siglip-224"]), tmp_path / "out")
    assert {tensor.dtype for tensor in tensors_of(result.folder).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("pads", "asked", "padded"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_padding_to_a_square_is_kept_or_asked_for(towers, tmp_path, pads, asked, padded):
    source = save_llava(tmp_path / "source", towers["clip-l-224"], pads=pads)
    result = swap(str(source), str(towers["siglip-224"]), tmp_path / "out", pad=asked)
    processor = AutoProcessor.from_pretrained(result.folder, backend="pil").image_processor
    image = photographs(1, side=96)[0].crop((0, 0, 96, 48))
    pixels = processor(image, return_tensors="pt").pixel_values[0]  # (3, 224, 224)
    assert pixels.shape == (3, 224, 224)
    grey = pixels[:, :50].abs().max() < 0.03  # the mean colour, but for rounding to whole values
    assert bool(grey) == (pads or asked)


def test_a_failure_leaves_nothing_under_the_final_name(llava_folder, towers, tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "_check_whole", die)
    with pytest.raises(KeyboardInterrupt):
        swap(str(llava_folder), str(towers["clip-l-224"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert swap(str(llava_folder), str(towers["clip-l-224"]), tmp_path / "out").folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_not_whole_is_not_put_in_place(llava_folder, towers, tmp_path):
    torn = shutil.copytree(llava_folder, tmp_path / "torn")
    tensors = {k: t for file in torn.glob("*.safetensors") for k, t in load_file(file).items()}
    tensors.pop("language_model.model.norm.weight")
    write_weights(torn, tensors)
    with pytest.raises(ExportError, match=r"language_model\.norm\.weight: missing"):
        swap(str(torn), str(towers["clip-l-224"]), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_constants_that_older_versions_saved_are_no_fault(llava_folder, towers, tmp_path):
    old = shutil.copytree(llava_folder, tmp_path / "old")
    tensors = {k: t for file in old.glob("*.safetensors") for k, t in load_file(file).items()}
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    write_weights(old, tensors)
    result = swap(str(old), str(towers["clip-l-224"]), tmp_path / "out")
    assert "vision_tower.embeddings.position_ids" not in tensors_of(result.folder)
    _, report = LlavaForConditionalGeneration.from_pretrained(result.folder, output_loading_info=True)
    assert not report["missing_keys"]
