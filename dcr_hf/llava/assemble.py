"""A vision tower and a language model -> a LLaVA that was not trained yet: what LLaVA's own training begins from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from dcr_hf.errors import UserError
from dcr_hf.hub import local_folder, model_folder
from dcr_hf.llava.conversations import CHAT_TEMPLATE, IMAGE
from dcr_hf.llava.folder import MODEL_FILES, LlavaFolder, made_whole, processor_for, save_processor
from dcr_hf.llava.swap import new_projector
from dcr_hf.llava.tokenizer import read_tokenizer
from dcr_hf.llava.tower import Tower, read_tower
from dcr_hf.llava.weights import Read, rewrite, weight_files
from dcr_hf.models.headers import read_header
from dcr_hf.models.reading import read_config

_ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # a row for each token
_MULTIPLE = 64  # of rows: what GPUs like


def read_language_model(path_or_id: str) -> tuple[Path, PreTrainedConfig]:
    """Check and read everything but the weights.

    Raises:
        NotFoundError: no such folder, no configuration, no weights.
        UserError: no language model of Llama's kind.
    """
    folder = local_folder(path_or_id, MODEL_FILES, "language model")
    config = read_config(f"language model {path_or_id!r}", folder)
    if config.model_type in ("llava", "llava_llama"):
        raise UserError(f"language model {path_or_id!r} is a LLaVA already: give it as --llava, alone.")
    names = read_header(path_or_id, "language model").names
    other = sorted(name for name in names if not name.startswith(("model.layers.", "model.norm.", *_ROWS)))
    if other or "model.embed_tokens.weight" not in names:
        raise UserError(
            f"language model {path_or_id!r} is a {config.model_type!r} model with weights such as "
            f"{(other or sorted(names))[0]}; a causal language model of Llama's kind is wanted, such as Vicuna."
        )
    return folder, config


@dataclass(frozen=True)
class Parts:
    """A tower and a language model that are to become one, and how that one will be; nothing of it is written yet."""

    tower: Tower
    language_model: str
    llava: LlavaFolder


def read_parts(encoder: str, language_model: str) -> Parts:
    """The LLaVA's vocabulary gets `<image>` and, where there is none, a padding token. Its images are padded to
    squares.

    Raises:
        FileNotFoundError, ValueError: see `read_tower` and `read_language_model`.
    """
    tower = read_tower(encoder)
    folder, text = read_language_model(language_model)
    # Padded on the left for generation; training pads its own batches.
    tokenizer = _with_image_token(read_tokenizer(f"language model {language_model!r}", folder, padding_side="left"))
    config = _config(tower, text, tokenizer, read_header(language_model, "language model").dtype)
    processor = processor_for(tower, tokenizer, pads=True, chat_template=CHAT_TEMPLATE)
    return Parts(tower, language_model, LlavaFolder(f"{encoder} + {language_model}", Path(), config, processor))


def assemble(parts: Parts, output: Path) -> None:
    """Write a LlavaForConditionalGeneration with a new projector, in transformers 4.x's layout, which every version
    reads. The embeddings of new tokens are the mean of the old ones.

    Raises:
        ExportError: what was written is incomplete.
    """
    source, _ = model_folder(parts.language_model, what="language model")
    config, tokenizer = parts.llava.config, parts.llava.processor.tokenizer
    dtype, rows = cast(torch.dtype, config.dtype), cast(PreTrainedConfig, config.text_config).vocab_size
    new = [
        partial(_named, "vision_tower.vision_model.", partial(parts.tower.weights, dtype)),
        partial(_named, "multi_modal_projector.", partial(new_projector, config, dtype)),
    ]
    with made_whole(output, sum(file.stat().st_size for file in weight_files(source))) as folder:
        rewrite(source, folder, partial(_language_weight, rows), new)
        config.save_pretrained(folder)
        save_processor(parts.llava.processor, folder)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)


def _with_image_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    new = [IMAGE]
    if tokenizer.pad_token is None and tokenizer.unk_token is None:
        new.append("<pad>")
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or "<pad>"  # LLaVA's is <unk>
    return tokenizer


def _config(
    tower: Tower, text: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> LlavaConfig:
    if len(tokenizer) > text.vocab_size:
        text.vocab_size = _MULTIPLE * -(-len(tokenizer) // _MULTIPLE)
    text.pad_token_id = tokenizer.pad_token_id
    return LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids(IMAGE)),
        image_seq_length=tower.image_tokens,
        vision_feature_select_strategy=tower.kind.strategy,
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
    )


def _named(prefix: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in make().items()}


def _language_weight(rows: int, name: str, read: Read) -> dict[str, Tensor]:
    if name.endswith(".rotary_emb.inv_freq"):  # older Llamas saved this constant
        return {}
    tensor = read()
    if name in _ROWS and len(tensor) < rows:
        mean = tensor.float().mean(dim=0).to(tensor.dtype)
        tensor = torch.cat([tensor, mean.expand(rows - len(tensor), -1)])  # (rows, width)
    return {f"language_model.{name}": tensor}
