"""Another vision tower for a LLaVA: weights, configuration, processor and projector that fit each other."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from dcr_hf.errors import AlreadyExistsError, UserError
from dcr_hf.llava.folder import LlavaFolder, made_whole, processor_for, read_llava, save_processor
from dcr_hf.llava.tower import Tower, read_tower
from dcr_hf.llava.weights import Read, canonical, opened, rewrite, weight_files
from dcr_hf.models.reading import read_json

TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."


@dataclass(frozen=True)
class Swapped:
    """What came of it.

    Attributes:
        widths: of the old tower and of the new one.
        new_projector: whether the old one does not fit, and one with random weights replaces it.
    """

    folder: Path
    image_tokens: int
    widths: tuple[int, int]
    new_projector: bool


def swap(llava: str, encoder: str, output: str | Path, pad: bool = False) -> Swapped:
    """Write `llava` with the vision tower of `encoder` to `output`; the language model stays bit for bit.

    Args:
        llava: a LlavaForConditionalGeneration folder or id.
        encoder: a CLIP or SigLIP, dual encoder or vision tower.
        pad: pad images to squares, as LLaVA-1.5 does. By default as `llava`'s processor does.

    Raises:
        AlreadyExistsError: `output` is there.
        FileNotFoundError, ValueError: see `read_llava` and `read_tower`; too few layers for LLaVA's feature layer.
        ExportError: what was written is incomplete.
    """
    output = Path(output).expanduser()
    if output.exists():
        raise AlreadyExistsError(f"{output} exists. Choose another --output, or remove it.")
    source, tower = read_llava(llava), read_tower(encoder)
    config = swapped_config(source, tower)
    widths = source.tower.config.hidden_size, tower.config.hidden_size
    parts = {TOWER: tower.weights}
    if widths[0] != widths[1]:
        parts[PROJECTOR] = partial(new_projector, LlavaConfig.from_dict(config))
    source.fetch_weights()
    with made_whole(output, source.bytes) as folder:
        _write_weights(source.folder, folder, parts)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        old = source.processor
        processor = processor_for(
            tower, old.tokenizer, pad or source.pads, chat_template=old.chat_template, image_token=old.image_token
        )
        save_processor(processor, folder, source.folder)
    return Swapped(output, tower.image_tokens, widths, widths[0] != widths[1])


def swapped_config(source: LlavaFolder, tower: Tower) -> dict:
    """The LLaVA's own config.json with the tower's geometry in it."""
    layers = source.config.vision_feature_layer
    farthest = max(abs(layer) for layer in (layers if isinstance(layers, list) else [layers]))
    if farthest > tower.config.num_hidden_layers:
        raise UserError(
            f"encoder {tower.path!r} has {tower.config.num_hidden_layers} layers, too few for the LLaVA's "
            f"vision_feature_layer {layers}."
        )
    vision = tower.config.to_dict() | {"model_type": tower.config.model_type}
    return read_json(f"LLaVA {source.name!r}", source.folder / "config.json") | {
        "vision_config": {name: value for name, value in vision.items() if name not in ("architectures", "dtype")},
        "image_seq_length": tower.image_tokens,
        "vision_feature_select_strategy": tower.kind.strategy,
    }


@dataclass(frozen=True)
class _Layout:
    """How a LLaVA's files hold a part's weights: the prefix of their names, and their type."""

    prefix: str
    dtype: torch.dtype

    @classmethod
    def of(cls, folder: Path, part: str) -> "_Layout":
        for file in weight_files(folder):
            with opened(file) as tensors:
                for name, read in tensors.items():
                    if canonical(name).startswith(part):
                        inside = canonical(name).removeprefix(part)
                        return cls(name.removesuffix(inside), read().dtype)
        raise UserError(f"LLaVA {str(folder)!r} has no weights of its {part.removesuffix('.')}.")


def _write_weights(source: Path, target: Path, parts: dict[str, Callable[..., dict[str, Tensor]]]) -> None:
    """Everything but the replaced parts is copied as it is; they come from functions of a dtype, one at a time."""

    def keep(name: str, read: Read) -> dict[str, Tensor]:
        return {} if canonical(name).startswith(tuple(parts)) else {name: read()}

    def new_shard(part: str) -> dict[str, Tensor]:
        layout = _Layout.of(source, part)
        return {layout.prefix + name: tensor for name, tensor in parts[part](dtype=layout.dtype).items()}

    rewrite(source, target, keep, [partial(new_shard, part) for part in parts])


def new_projector(config: LlavaConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """A projector's weights as PyTorch initialises it, which is LLaVA's way too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
    return {name: tensor.to(dtype) for name, tensor in projector.state_dict().items()}
