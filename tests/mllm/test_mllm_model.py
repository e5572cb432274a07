"""LLaVA as its own evaluation asks it: words, padding, batches; folders that are none are refused by name."""

import copy
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from dcr_hf.mllm.benchmarks import read_benchmarks
from dcr_hf.mllm.model import Llava, ModelError
from helpers.images import photographs
from helpers.mllm_layouts import save_talkative_llava, write_naturalbench
from helpers.tiny_llava import save_llava
from helpers.tiny_models import MEAN


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_talkative_llava(tmp_path_factory.mktemp("llava") / "llava-tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_naturalbench(root / "NaturalBench", count=6)
    return read_benchmarks(["naturalbench"], root)["naturalbench"]


def said(model, data, chosen):
    answered = list(model.answer(data, chosen))
    assert [place for places, _ in answered for place in places] == list(chosen)
    return [reply for _, replies in answered for reply in replies]


def test_inputs_are_llavas_conversation_about_the_padded_image(llava):
    conversations = Llava("a", str(llava)).conversations
    wide = photographs(1)[0].crop((0, 0, 96, 30))
    square = Image.new("RGB", (96, 96), tuple(int(255 * value) for value in MEAN))
    square.paste(wide, (0, 33))
    inputs = conversations([wide, photographs(2)[1]], ["A picture?", "A much longer question?"])
    short, long = inputs["input_ids"]
    asked = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nA picture? ASSISTANT:"
    )
    image, pad = conversations.processor.image_token_id, conversations.tokenizer.pad_token_id
    before, after = (part for part in asked.split("<image>", 1))
    words = [conversations.tokenizer(part)["input_ids"] for part in (before, after)]
    said = [token for token in short.tolist() if token not in (image, pad)]
    assert said == words[0] + words[1][1:]  # without its <s>
    assert (short == image).sum() == (long == image).sum() == 16  # 32 pixels in patches of 8
    assert short[0] == pad and short[-1] == long[-1] != pad  # on the left
    assert inputs["attention_mask"].sum(dim=1).tolist() == [(short != pad).sum(), len(long)]
    own = AutoImageProcessor.from_pretrained(llava, backend="pil")  # which cuts squares out
    by_hand = own([square, photographs(2)[1]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs["pixel_values"], by_hand)
    assert inputs["pixel_values"][0][:, :10].abs().max() < 0.03  # of the mean colour


def test_batches_of_one_and_of_eight_give_the_same_replies(llava, data):
    chosen = list(range(0, 24, 2))
    alone = said(Llava("a", str(llava), batch_size=1, max_new_tokens=12), data, chosen)
    together = said(Llava("a", str(llava), batch_size=8, workers=1, max_new_tokens=12), data, chosen)
    assert alone == together
    assert len(set(alone)) > 4  # the model does say something


def test_a_siglip_tower_is_asked_too(siglip_folder, data, tmp_path):
    model = Llava("a", str(save_llava(tmp_path / "llava-siglip", siglip_folder)), max_new_tokens=3)
    inputs = model.conversations(photographs(1), ["What?"])
    assert (inputs["input_ids"] == model.conversations.processor.image_token_id).sum() == 16
    assert len(said(model, data, [0, 1, 2])) == 3


def test_replies_depend_on_the_image(llava, data):
    model = Llava("a", str(llava), max_new_tokens=12)
    changed = [model.conversations([image], ["What?"]) for image in photographs(2)]
    first, second = (model.model(**inputs).logits for inputs in changed)
    assert not torch.allclose(first[:, -1], second[:, -1], atol=1e-3)
    assert "model" in vars(model) and "model" not in vars(copy.copy(model))  # as it travels to a loader's workers
    model.release()
    assert "model" not in vars(model)


def test_identity_changes_with_what_replies_depend_on(llava, tmp_path):
    def identity(folder, **options):
        return {key: value for key, value in Llava("a", str(folder), **options).identity.items() if key != "path"}

    same = identity(shutil.copytree(llava, tmp_path / "same"))
    assert same == identity(llava)
    assert identity(llava, dtype="bfloat16") != same and identity(llava, max_new_tokens=5) != same
    weights = load_file(tmp_path / "same" / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "same" / "model.safetensors", {"format": "pt"})
    assert identity(tmp_path / "same") != same
    other = shutil.copytree(llava, tmp_path / "other")
    change(other / "config.json", lambda config: config | {"vision_feature_layer": -1})
    assert identity(other) != same


def change(path, how):
    path.write_text(json.dumps(how(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model_type": "llava_next"}, r"model a: LLaVA .* is a 'llava_next' model, which is not supported"),
        ({"model_type": "video_llava"}, r"is a 'video_llava' model"),
        ({"text_config": None, "mm_vision_tower": "x"}, r"model a: LLaVA .* is in the format of LLaVA's own code"),
        (
            {"vision_feature_select_strategy": "full"},
            r"model a: .* is 'full'; its clip_vision_model .*'default'",
        ),
    ],
)
def test_other_models_are_refused_by_name(llava, tmp_path, how, message):
    folder = shutil.copytree(llava, tmp_path / "other")
    change(
        folder / "config.json",
        lambda config: {key: value for key, value in (config | how).items() if value is not None},
    )
    with pytest.raises(ModelError, match=message):
        Llava("a", str(folder))


def test_folders_that_are_no_models(llava, clip_folder, tmp_path):
    no_weights = shutil.copytree(llava, tmp_path / "no-weights")
    (no_weights / "model.safetensors").unlink()
    for path, message in (
        ("/nowhere", r"model a: LLaVA '/nowhere' is neither a folder here nor a hub id"),
        (tmp_path, r"model a: LLaVA .* has no config.json"),
        (clip_folder, r"model a: LLaVA .* is a 'clip' model"),
        (no_weights, r"model a: .*no-weights. lacks weights"),
    ):
        with pytest.raises(ModelError, match=message):
            Llava("a", str(path))
