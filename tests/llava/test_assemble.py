"""A vision tower and a language model put together: nothing of either is changed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from dcr_hf.llava.assemble import assemble, read_parts
from dcr_hf.llava.weights import canonical
from helpers.images import photographs
from helpers.tiny_llava import GEOMETRIES, save_llama


@pytest.fixture(scope="module", params=["clip-l-224", "siglip-384"])
def assembled(request, towers, llama_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("assembled") / "start"
    assemble(read_parts(str(towers[request.param]), str(llama_folder)), output)
    return GEOMETRIES[request.param], towers[request.param], output


def test_it_loads_whole_and_generates(assembled):
    geometry, _, folder = assembled
    model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=photographs(1)[0], text=prompt, return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == geometry.tokens
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs.input_ids.shape[1]
    assert processor.image_processor.do_pad and processor.tokenizer.padding_side == "left"


def test_the_language_model_says_what_it_said_and_new_tokens_are_the_mean(assembled, llama_folder):
    _, _, folder = assembled
    llama = AutoModelForCausalLM.from_pretrained(llama_folder)
    llava = LlavaForConditionalGeneration.from_pretrained(folder)
    ids = torch.randint(3, 300, (1, 9))
    with torch.no_grad():
        expected, found = llama(ids).logits, llava(input_ids=ids).logits
    words = expected.shape[-1]
    torch.testing.assert_close(found[..., :words], expected, rtol=0, atol=0)
    rows = llava.get_input_embeddings().weight
    assert len(rows) % 64 == 0 and llava.config.image_token_id == words
    torch.testing.assert_close(rows[words:], rows[:words].mean(dim=0).expand(len(rows) - words, -1))


def test_the_layout_is_the_one_that_every_version_reads(assembled):
    _, tower, folder = assembled
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {".".join(name.split(".")[:2]) for name in names} == {
        "language_model.model",
        "language_model.lm_head",
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    }
    written = {canonical(name): load_file(folder / file)[name] for name, file in names.items()}
    for name, tensor in load_file(tower / "model.safetensors").items():
        if name.startswith("vision_model."):
            assert torch.equal(written[f"vision_tower.{name.removeprefix('vision_model.')}"], tensor)


def test_tied_embeddings_stay_tied(towers, tmp_path):
    llama = save_llama(tmp_path / "tied", tie_word_embeddings=True)
    assemble(read_parts(str(towers["clip-l-224"]), str(llama)), tmp_path / "start")
    model, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "start", output_loading_info=True)
    assert not any(report.values())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def sentencepiece_model(file):
    """A byte-level-fallback BPE, as Llama's `tokenizer.model` is."""
    SentencePieceTrainer.train(
        sentence_iterator=iter(["What is this? A cat.", "USER: is it a cat? ASSISTANT: yes it is"] * 20),
        model_writer=file,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )


def test_vicunas_own_format_is_read(towers, llama_folder, tmp_path):
    """PyTorch's pickles, with a constant that older Llamas saved; sentencepiece's tokenizer, and no other."""
    vicuna = shutil.copytree(llama_folder, tmp_path / "vicuna")
    (vicuna / "tokenizer.json").unlink()
    with (vicuna / "tokenizer.model").open("wb") as file:
        sentencepiece_model(file)
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (vicuna / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<unk>", "legacy": False}))
    tensors = load_file(vicuna / "model.safetensors") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    (vicuna / "model.safetensors").unlink()
    torch.save(tensors, vicuna / "pytorch_model.bin")
    assemble(read_parts(str(towers["clip-l-224"]), str(vicuna)), tmp_path / "start")
    model, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "start", output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "start", backend="pil").tokenizer
    words = tokenizer.convert_ids_to_tokens(tokenizer("is it <image>").input_ids)
    assert words == ["<s>", "▁is", "▁it", "▁", "<image>"] and tokenizer.pad_token == "<unk>"
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") == 320


def test_what_is_no_language_model_is_refused(towers, llava_folder, tmp_path):
    tower = str(towers["clip-l-224"])
    with pytest.raises(ValueError, match="is a LLaVA already: give it as --llava, alone"):
        read_parts(tower, str(llava_folder))
    with pytest.raises(ValueError, match=r"is a 'clip' model with weights such as .*a causal language model of Llama"):
        read_parts(tower, tower)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_parts(tower, str(tmp_path))
