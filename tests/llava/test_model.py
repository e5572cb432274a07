"""The model that is trained says what transformers' own says, and the same modules take part in every step."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from dcr_hf.export import ExportError
from dcr_hf.llava.model import TrainedLlava, TrainedWeights
from dcr_hf.llava.weights import opened
from helpers.tiny_llava import GEOMETRIES, write_weights


@pytest.fixture
def model(llava_folder):
    return TrainedLlava.from_pretrained(llava_folder, dtype=torch.float32)


def a_batch(model, images):
    """Two conversations; as many of them have an image."""
    torch.manual_seed(0)
    tokens = GEOMETRIES["clip-l-336"].tokens
    ids = torch.randint(3, 300, (2, tokens + 12))
    ids[:images, 4 : 4 + tokens] = model.config.image_token_id
    labels = ids.clone()
    labels[:, : tokens + 6] = -100
    pixels = torch.randn(images, 3, 336, 336) if images else None
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("images", [2, 1, 0])
def test_loss_and_gradients_are_transformers_own(model, images):
    model.train_language(0, 0, 0)
    batch = a_batch(model, images)
    found = model(**batch)
    found.loss.backward()
    of_ours = gradients(model)
    model.zero_grad()
    expected = model.llava(**batch)
    expected.loss.backward()
    of_theirs = gradients(model)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    projector = {name for name in of_ours if "multi_modal_projector" in name}
    assert len(projector) == 4 and of_ours.keys() - of_theirs.keys() == (set() if images else projector)
    for name, gradient in of_ours.items():
        torch.testing.assert_close(gradient, of_theirs.get(name, torch.zeros_like(gradient)))


def test_modules_take_part_in_the_same_order_with_an_image_and_without(model):
    order = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(**a_batch(model, 2))
        with_images, order[:] = list(order), []
        model(**a_batch(model, 0))
    assert order == with_images and len(order) > 60


def test_as_many_image_tokens_as_features_are_wanted(model):
    batch = a_batch(model, 2)
    batch["input_ids"][0, 4] = 5
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model(**batch)


def test_what_is_trained_is_saved_and_read_back(model, llava_folder, tmp_path):
    model.train_projector()
    assert {name.split(".")[2] for name in model.trained_names} == {"multi_modal_projector"}
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(1.0)
    model.save_trained(tmp_path)
    other = TrainedLlava.from_pretrained(llava_folder, dtype=torch.float32)
    other.load_trained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_of_another_model_are_refused(model, tmp_path):
    model.train_language(4, 8, 0.0)
    model.save_trained(tmp_path)
    trained = TrainedWeights([tmp_path], lora_scale=2.0)
    with pytest.raises(ExportError, match="trained weights fit nothing, such as"):
        trained.check_all_used()
    model.llava.lm_head = torch.nn.Identity()
    model.llava.model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(ValueError, match="has weights that this model has not"):
        model.load_trained(tmp_path)


def test_adapters_are_those_of_the_language_models_linear_layers_alone(model, tmp_path):
    model.train_language(4, 8, 0.0)
    model.save_trained(tmp_path)
    with opened(tmp_path / "model.safetensors") as tensors:
        names = set(tensors)
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7 and all(name.startswith("model.language_model.layers.") for name in adapters)
    assert {name.split(".")[1] for name in names - adapters} == {"multi_modal_projector"}


def test_a_folder_that_lacks_weights_is_not_trained(llava_folder, tmp_path):
    torn = shutil.copytree(llava_folder, tmp_path / "torn")
    tensors = {name: t for file in torn.glob("*.safetensors") for name, t in load_file(file).items()}
    tensors.pop("language_model.lm_head.weight")
    write_weights(torn, tensors)
    with pytest.raises(ValueError, match=r"lacks 1 weights, such as lm_head\.weight"):
        TrainedLlava.from_pretrained(torn, dtype=torch.float32)
