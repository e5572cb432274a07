"""What is measured: features against transformers' own forward, adapters, lone towers, identities, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionModel, SiglipVisionModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.models.families import FAMILIES
from dcr_hf.models.loading import load_dual_encoder
from helpers.images import photographs
from helpers.tiny_models import EMBEDDING_WIDTH, save_clip


def pixels_of(encoder, images):
    return torch.stack([encoder.preprocess(image) for image in images])


@pytest.fixture(scope="session")
def stage2_folder(clip_folder, models_folder):
    """An adapter folder as stage 2 leaves it, on the tiny CLIP."""
    torch.manual_seed(5)
    model = load_dual_encoder(str(clip_folder))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=FAMILIES["clip"].lora_targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(models_folder / "stage2")
    return models_folder / "stage2"


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_transformers_own(encoder_folders, family):
    """The split of preprocessing between worker and device changes nothing."""
    folder = str(encoder_folders[family])
    encoder, model = PretrainedEncoder("e", folder), load_dual_encoder(folder)
    images = photographs(3)
    values = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=images, return_tensors="pt")
    with torch.no_grad():
        vision = model.vision_model(pixel_values=values["pixel_values"])
        expected = {
            "projected": model.get_image_features(**values).pooler_output,
            "pooled": vision.pooler_output,
            "mean_patch": vision.last_hidden_state[:, int(family == "clip") :].mean(dim=1),
        }
    features = encoder.embed_images(pixels_of(encoder, images))
    assert tuple(features) == tuple(features.keys()) and set(features) == set(encoder.kinds)
    assert features["projected"].shape == (3, EMBEDDING_WIDTH[family])
    for wanted, values in expected.items():
        np.testing.assert_allclose(features[encoder.kind(wanted)], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_transformers_own(encoder_folders, family):
    folder = str(encoder_folders[family])
    model = load_dual_encoder(folder)
    texts = ["a photo of a cat", "x" * 200]
    length = {"clip": 77, "siglip": 64}[family]
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (2, length)
    with torch.no_grad():
        expected = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    tower = PretrainedEncoder("e", folder).text
    np.testing.assert_allclose(
        tower.embed(texts), torch.nn.functional.normalize(expected, dim=-1).numpy(), rtol=1e-4, atol=1e-5
    )
    assert tower.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_adapter_is_merged_without_exporting(clip_folder, stage2_folder):
    plain, tuned = PretrainedEncoder("a", str(clip_folder)), PretrainedEncoder("b", str(stage2_folder))
    pixels = pixels_of(plain, photographs(2))
    merged = load_dual_encoder(str(clip_folder), stage2_folder)
    with torch.no_grad():
        expected = merged.get_image_features(plain.processor.to_pixel_values(pixels)).pooler_output
    features = tuned.embed_images(pixels)["projected"]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(features - plain.embed_images(pixels)["projected"]).max() > 0.1
    assert tuned.identity["weights"] == plain.identity["weights"]
    assert plain.identity["trained"] is None and tuned.identity["trained"] is not None
    np.testing.assert_array_equal(tuned.text.embed(["a"]), plain.text.embed(["a"]))  # the text side is untouched


@pytest.mark.parametrize(("family", "tower"), [("clip", CLIPVisionModel), ("siglip", SiglipVisionModel)])
def test_lone_vision_tower(encoder_folders, tmp_path, family, tower):
    tower.from_pretrained(encoder_folders[family]).save_pretrained(tmp_path)
    shutil.copy(encoder_folders[family] / "preprocessor_config.json", tmp_path)
    dual, alone = PretrainedEncoder("dual", str(encoder_folders[family])), PretrainedEncoder("alone", str(tmp_path))
    pixels = pixels_of(dual, photographs(2))
    kind = alone.kind("auto")
    assert kind == {"clip": "pooled", "siglip": "projected"}[family]
    np.testing.assert_allclose(alone.embed_images(pixels)[kind], dual.embed_images(pixels)[kind], atol=1e-5)
    assert not alone.has_text
    with pytest.raises(ValueError, match=r"alone .* has no text tower"):
        _ = alone.text
    if family == "clip":
        with pytest.raises(ValueError, match=r"alone has no 'projected' features, only pooled, mean_patch"):
            alone.kind("projected")


def test_identity_follows_the_weights_the_processor_and_the_dtype(clip_folder, tmp_path):
    def identity(folder, dtype="float32"):
        parts = PretrainedEncoder("e", str(folder), dtype).identity
        return {name: value for name, value in parts.items() if name != "path"}

    same, other = tmp_path / "same", save_clip(tmp_path / "other", seed=7)
    shutil.copytree(clip_folder, same)
    assert identity(same) == identity(clip_folder)
    assert identity(other)["weights"] != identity(clip_folder)["weights"]
    assert identity(same, "bfloat16") != identity(clip_folder)
    path = same / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.25", "0.26"))
    assert identity(same)["processor"] != identity(clip_folder)["processor"]


def test_dtype_is_used(clip_folder):
    encoder = PretrainedEncoder("e", str(clip_folder), "bfloat16")
    pixels = pixels_of(encoder, photographs(2))
    assert encoder.model.dtype == torch.bfloat16
    half, full = (
        each.embed_images(pixels)["projected"] for each in (encoder, PretrainedEncoder("e", str(clip_folder)))
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_refusals(clip_folder, sd_folder, stage2_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a folder here nor a hub id"):
        PretrainedEncoder("e", "no/such/folder")
    with pytest.raises(FileNotFoundError, match=r"encoder e: .* neither config.json nor adapter_config.json"):
        PretrainedEncoder("e", str(sd_folder))
    with pytest.raises(ValueError, match=r"'clip_text_model'.*supported are clip, siglip"):
        PretrainedEncoder("e", str(sd_folder / "text_encoder"))
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"python -m dcr_hf.convert"):
        PretrainedEncoder("e", str(tmp_path / "weights.pt"))
    adapter = shutil.copytree(stage2_folder, tmp_path / "stage2")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    with pytest.raises(FileNotFoundError, match=r"'/gone' is neither a folder here"):
        PretrainedEncoder("e", str(adapter))


def test_missing_weights_are_not_left_random(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip_folder, tmp_path / "holed")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as visual_projection.weight"):
        _ = PretrainedEncoder("e", str(folder)).model


def test_processor_of_another_size_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "wrong")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("32", "64"))
    with pytest.raises(ValueError, match=r"makes 64 pixels, its vision tower takes 32"):
        PretrainedEncoder("e", str(folder))


@pytest.mark.parametrize(
    ("size", "left", "top"), [((32, 35), 0, 2), ((35, 32), 2, 0), ((33, 32), 0, 0), ((32, 32), 0, 0)]
)
def test_openais_own_crop_rounds(clip_folder, size, left, top):
    """torchvision: int(round(3 / 2)) = 2, and round(1 / 2) = 0; transformers: 3 // 2 = 1."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    own, original = (PretrainedEncoder("e", str(clip_folder), preprocess=kind) for kind in ("processor", "original"))
    expected = np.asarray(image)[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(original.preprocess(image).numpy(), expected)
    floored = np.asarray(image)[top // 2 : top // 2 + 32, left // 2 : left // 2 + 32].transpose(2, 0, 1)
    assert np.array_equal(own.preprocess(image).numpy(), floored)
    assert own.identity != original.identity and "preprocess" not in own.identity


def test_a_processor_that_does_not_crop_has_no_other_transform(siglip_folder):
    own, original = (PretrainedEncoder("e", str(siglip_folder), preprocess=kind) for kind in ("processor", "original"))
    assert own.identity == original.identity


def test_openais_transform_resizes_once(clip_folder, tmp_path):
    """A processor that resizes to more than it crops: the crop is not resized again."""
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"shortest_edge": 40}}))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 107, 3), dtype=np.uint8))
    found = PretrainedEncoder("e", str(folder), preprocess="original").preprocess(image)
    resized = np.asarray(image.resize((53, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(found.numpy(), resized[4:36, 10:42].transpose(2, 0, 1))  # round(21 / 2) = 10
