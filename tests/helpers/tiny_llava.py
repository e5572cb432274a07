"""Tiny random language models and LLaVAs, saved as the real folders they stand for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import import_protobuf

from dcr_hf.llava.folder import processor_for
from dcr_hf.llava.tokenizer import read_tokenizer
from dcr_hf.llava.tower import read_tower
from helpers.images import encoded, photographs
from helpers.tiny_models import save_clip, save_siglip

TEXT_WIDTH = 32
_WORDS = ("cat", "What", "is", "this", "USER", "ASSISTANT")


@dataclass(frozen=True)
class Geometry:
    """A real tower's image and patch size and so its number of tokens, with a tiny width in the place of the real."""

    family: str
    image_size: int
    width: int
    tokens: int

    def save(self, folder: Path, seed: int = 0) -> Path:
        save = {"clip": save_clip, "siglip": save_siglip}[self.family]
        return save(folder, seed=seed, image_size=self.image_size, patch_size=14, width=self.width)


# Widths stand for 1024, 1024, 1280, 1152 and 1152.
GEOMETRIES = {
    "clip-l-224": Geometry("clip", 224, 24, 256),
    "clip-l-336": Geometry("clip", 336, 24, 576),
    "metaclip-h-224": Geometry("clip", 224, 40, 256),
    "siglip-224": Geometry("siglip", 224, 36, 256),
    "siglip-384": Geometry("siglip", 384, 36, 729),
}


def llama_tokenizer() -> LlamaTokenizer:
    """Letters, some whole words, and bytes for everything else; as Llama's, it begins a text with <s>."""
    merges, tokens = [], ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [chr(code) for code in range(33, 127)]
    for word in _WORDS:
        piece = "▁"
        for letter in word:
            merges.append((piece, letter))
            piece += letter
            tokens.append(piece)
    tokens = [*dict.fromkeys(tokens)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return LlamaTokenizer(vocab=vocabulary, merges=[*dict.fromkeys(merges)], add_bos_token=True)


def save_sentencepiece(folder: Path, legacy: bool | None, spaces: int = 0) -> LlamaTokenizer:
    """Vicuna's kind of tokenizer: sentencepiece's tokenizer.model with a configuration, by `read_tokenizer`."""
    sentences = ["what is this cat", "USER ASSISTANT a chat between a curious user", "helpful, detailed and polite"]
    (folder / "sentences.txt").write_text("\n".join(sentences * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "sentences.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    if spaces:  # Llama's model has runs of them, all with this score
        model = import_protobuf().ModelProto()
        model.ParseFromString((folder / "tokenizer.model").read_bytes())
        for length in range(2, spaces + 1):
            model.pieces.add(piece="▁" * length, score=-1e9)
        (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return read_tokenizer("tokenizer", folder)


def text_config(tokens: int, **changes) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=tokens,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        **changes,
    )


def save_llama(folder: Path, seed: int = 0, **changes) -> Path:
    """A language model as Vicuna's folder has it."""
    torch.manual_seed(seed)
    tokenizer = llama_tokenizer()
    LlamaForCausalLM(text_config(len(tokenizer), **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llava(
    folder: Path, tower_folder: Path, seed: int = 0, shards: int = 1, pads: bool = False, **changes
) -> Path:
    """A LLaVA around a copy of that tower, in transformers 4.x's key layout, as llava-hf's folders have it."""
    torch.manual_seed(seed)
    tokenizer, tower = llama_tokenizer(), read_tower(str(tower_folder))
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text_config(64 * -(-len(tokenizer) // 64), pad_token_id=tokenizer.pad_token_id, **changes),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=tower.image_tokens,
        vision_feature_select_strategy=tower.kind.strategy,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.weights(torch.float32))
    model.save_pretrained(folder)
    processor_for(tower, tokenizer, pads).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    write_weights(folder, {transformers_4(name): tensor for name, tensor in tensors.items()}, shards)
    return folder


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """In place of what is there, in about equally many tensors a shard."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, index = sorted(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in mine}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def transformers_4(name: str) -> str:
    """vision_tower.post_layernorm.weight -> vision_tower.vision_model.post_layernorm.weight"""
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def transformers_5(name: str) -> str:
    """The names that transformers 5.x has in memory."""
    name = name.replace("vision_tower.vision_model.", "vision_tower.").replace("language_model.lm_head.", "lm_head.")
    name = name.replace("language_model.model.", "language_model.")
    return name if name.startswith("lm_head.") else f"model.{name}"


def turns(*words: str) -> list[dict[str, str]]:
    """A conversation in LLaVA's JSON, begun by the human."""
    return [{"from": ("human", "gpt")[place % 2], "value": said} for place, said in enumerate(words)]


def write_data(folder: Path, captions: int = 12, conversations: int = 16) -> dict[str, Path]:
    """Both of LLaVA's JSONs and their images: {"align_data", "align_images", "instruct_data", "instruct_images"}.

    Every fourth conversation is of text alone; photographs are wider than high."""
    images = folder / "images" / "coco"
    images.mkdir(parents=True)
    for number, photograph in enumerate(photographs(max(captions, conversations), side=48)):
        (images / f"{number}.jpg").write_bytes(encoded(photograph.crop((0, 0, 48, 32))))
    aligned = [
        {
            "id": f"c{number}",
            "image": f"coco/{number}.jpg",
            "conversations": turns("Say briefly.\n<image>", f"cat {number}"),
        }
        for number in range(captions)
    ]
    talks = []
    for number in range(conversations):
        talk = {"id": f"t{number}", "image": f"coco/{number}.jpg"}
        talk["conversations"] = turns("What is this?\n<image>", "a cat", "USER what?" * (number % 3 + 1), "is this")
        if number % 4 == 3:
            talk = {"id": f"t{number}", "conversations": turns("What is", f"cat cat {number}")}
        talks.append(talk)
    (folder / "captions.json").write_text(json.dumps(aligned))
    (folder / "talks.json").write_text(json.dumps(talks))
    return {
        "align_data": folder / "captions.json",
        "align_images": folder / "images",
        "instruct_data": folder / "talks.json",
        "instruct_images": folder / "images",
    }
