import json
import re
import shutil

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import FAMILIES, check_encoder
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.projector import Projector
from dcr_hf.training.stages import encoder_stage
from helpers.images import photographs
from helpers.runs import short_run
from helpers.tiny_models import EMBEDDING_WIDTH, MEAN, STD, save_clip

FAMILY_NAMES = sorted(FAMILIES)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_embeddings_are_the_dual_encoders_on_its_own_processors_pixels(encoder_folders, name):
    folder = encoder_folders[name]
    encoder, dual = ImageEncoder.from_pretrained(str(folder)), load_dual_encoder(str(folder))
    image = photographs(1, side=encoder.image_size)[0]
    pixel_values = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    images = torch.tensor(list(image.getdata())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = dual.get_image_features(pixel_values=pixel_values).pooler_output
        torch.testing.assert_close(encoder.normalize(images), pixel_values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape[1] == encoder.embedding_width == check_encoder(str(folder)) == EMBEDDING_WIDTH[name]
    assert encoder.mean.flatten().tolist() == pytest.approx(MEAN)
    assert encoder.std.flatten().tolist() == pytest.approx(STD)
    torch.testing.assert_close(encoder.denormalize(encoder.normalize(images)), images)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_lora_wraps_every_linear_layer_that_gets_a_gradient_and_no_other(encoder_folders, name):
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[name]))
    linears = {path for path, module in encoder.model.named_modules() if isinstance(module, nn.Linear)}
    expected = linears - {"vision_model.head.attention.out_proj"}
    assert len(expected) == {"clip": 13, "siglip": 14}[name]  # 2 layers of 6, and the projection or the head's MLP

    encoder.add_lora(rank=4, alpha=4, dropout=0.0)
    trained = {path: parameter for path, parameter in encoder.named_parameters() if parameter.requires_grad}
    wrapped = {re.sub(r"^model\.base_model\.model\.|\.lora_[AB]\.default\.weight$", "", path) for path in trained}
    assert wrapped == expected

    with torch.no_grad():  # B starts at zero, which would hide the gradient of A
        for path, parameter in trained.items():
            if "lora_B" in path:
                parameter.normal_(std=0.02)
    encoder(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values())


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_are_trained_beside_the_adapters(encoder_folders, name, bias):
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[name]))
    linears = {path for path, module in encoder.model.named_modules() if isinstance(module, nn.Linear)}
    names = {path for path, _ in encoder.model.named_parameters() if path.endswith(".bias")}
    encoder.add_lora(rank=4, alpha=4, dropout=0.0, bias=bias)
    trained = {path: parameter for path, parameter in encoder.named_parameters() if parameter.requires_grad}
    biases = {path.replace(".base_layer", "") for path in trained if path.endswith(".bias")}
    wanted = names if bias == "all" else names & {f"{path}.bias" for path in linears}
    assert biases == {f"model.base_model.model.{path}" for path in wanted}
    assert name == "clip" or "model.base_model.model.vision_model.head.attention.out_proj.bias" in biases
    assert not [path for path in trained if "out_proj.lora" in path and "head" in path]  # no gradient would come
    encoder(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.values())


def test_a_vit_l_trains_221184_numbers_of_biases():
    """As the released code does."""
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    with torch.device("meta"):
        encoder = ImageEncoder(CLIPModel(CLIPConfig(vision_config=tower)), FAMILIES["clip"], MEAN, STD)
        encoder.add_lora(16, 16, 0.1, "lora_only")
    named = encoder.named_parameters()
    assert sum(p.numel() for path, p in named if p.requires_grad and "lora_" not in path) == 221_184


@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("options", [{}, {"lora_bias": "none"}, {"lora_bias": "all"}, {"lora_rank": 0}])
def test_the_original_embedding_is_the_bases_whatever_is_trained(encoder_folders, name, options, tmp_path):
    images = torch.rand(2, 3, 32, 32)
    base = ImageEncoder.from_pretrained(str(encoder_folders[name])).eval()
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[name]))
    projector = Projector(encoder.embedding_width, 8)
    model = encoder_stage(encoder, projector, short_run(tmp_path, keep_weight=1.0, **options)).train()
    held = sum(parameter.numel() for parameter in encoder.parameters())
    assert (held > 1.9 * sum(parameter.numel() for parameter in base.parameters())) == (
        options != {"lora_bias": "none"}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        expected = base(images)
        torch.testing.assert_close(model(images, originals=2).originals, expected, rtol=0, atol=0)
        assert (model.eval()(images).embeddings - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("trains", ["projector", "encoder"])
def test_what_is_small_computes_in_full_precision_under_autocast(clip_folder, trains, tmp_path):
    images, encoder = torch.rand(3, 3, 32, 32), ImageEncoder.from_pretrained(str(clip_folder))
    projector = Projector(encoder.embedding_width, 8)
    if trains == "projector":
        model = ConditionModel(encoder, projector).eval()
    else:
        model = encoder_stage(encoder, projector, short_run(tmp_path)).eval()
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)
            rounded = projector(exact.embeddings)
    assert found.conditions.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    if trains == "projector":
        torch.testing.assert_close(found, exact, rtol=0, atol=0)
    else:
        torch.testing.assert_close(found.conditions, projector(found.embeddings.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_text_side_is_not_held(encoder_folders, name):
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[name]))
    assert not [path for path, _ in encoder.named_parameters() if "text" in path]


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "lacks weights"),
        ("preprocessor_config.json", "lacks an image processor"),
        ("tokenizer.json", "lacks a tokenizer"),
    ],
)
def test_a_missing_file_is_named(clip_folder, tmp_path, removed, message):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / removed).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        check_encoder(str(folder))


def test_another_model_is_refused(sd_folder):
    with pytest.raises(ValueError, match=r"'clip_text_model' model; supported are clip, siglip"):
        check_encoder(str(sd_folder / "text_encoder"))


def test_an_image_size_without_whole_latents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="20 pixels"):
        check_encoder(str(save_clip(tmp_path / "clip", image_size=20)))


def test_a_processor_of_another_size_than_the_tower_is_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"crop_size": {"height": 64, "width": 64}}))
    with pytest.raises(ValueError, match="makes 64 pixels, its vision tower takes 32"):
        ImageEncoder.from_pretrained(str(folder))
