"""A LlavaForConditionalGeneration folder: its checks, its weights, its other files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedConfig

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.export import ExportError
from dcr_hf.hub import check_weights, local_folder, model_folder
from dcr_hf.llava.tokenizer import read_tokenizer
from dcr_hf.llava.tower import KINDS, Tower
from dcr_hf.llava.weights import canonical, opened, weight_files
from dcr_hf.models.reading import SIDE_FILE_ERRORS, read_json
from dcr_hf.training.checkpoints import writing

MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
# Written again, or of no use to the new model; every other small file is copied byte by byte.
_OWN = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class LlavaFolder:
    """What a LLaVA is, without its weights.

    Attributes:
        name: as it was given.
        folder: where its files are; empty for one that is not written yet.
    """

    name: str
    folder: Path
    config: LlavaConfig
    processor: LlavaProcessor

    @property
    def pads(self) -> bool:
        """Whether its images are padded to squares."""
        return bool(self.processor.image_processor.do_pad)

    @property
    def tower(self) -> Tower:
        return Tower(self.name, vision_config(self.config), self.processor.image_processor)

    def fetch_weights(self) -> None:
        """Download the weights, where that has not happened. Raises as `hub.model_folder`."""
        model_folder(self.name, what="LLaVA")

    @property
    def bytes(self) -> int:
        """The size of its weights on disk."""
        return sum(file.stat().st_size for file in weight_files(self.folder))


def vision_config(config: LlavaConfig) -> PreTrainedConfig:
    """The tower's part of a configuration, which LlavaConfig has read."""
    return cast(PreTrainedConfig, config.vision_config)


def read_llava(path_or_id: str) -> LlavaFolder:
    """Check and read everything but the weights.

    Raises:
        NotFoundError: no such folder, no configuration, no weights.
        UserError: another architecture, named; the original code's format; a tower or processor of another kind.
    """
    folder = local_folder(path_or_id, MODEL_FILES, "LLaVA")
    if not (folder / "config.json").is_file():
        raise NotFoundError(f"LLaVA {path_or_id!r} has no config.json: it is no model folder.")
    raw = read_json(f"LLaVA {path_or_id!r}", folder / "config.json")
    found = raw.get("model_type", "without a model_type")
    if found == "llava_llama" or (found == "llava" and "text_config" not in raw):
        raise UserError(
            f"LLaVA {path_or_id!r} is in the format of LLaVA's own code. Give transformers' version of it, such as "
            "llava-hf/llava-1.5-7b-hf; or leave it, and give LLaVA's code the tower's folder as mm_vision_tower."
        )
    if found != "llava":
        raise UserError(
            f"LLaVA {path_or_id!r} is a {found!r} model, which is not supported: only LLaVA-1.5's architecture "
            "(model_type 'llava') is."
        )
    with as_user_error(f"LLaVA {path_or_id!r}: config.json", *SIDE_FILE_ERRORS):
        config = LlavaConfig.from_pretrained(folder)
    kind = vision_config(config).model_type
    if kind not in KINDS:
        raise UserError(f"LLaVA {path_or_id!r} has a {kind!r} tower; supported are {' and '.join(KINDS)}.")
    with as_user_error(f"LLaVA {path_or_id!r}: processor", *SIDE_FILE_ERRORS):
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
    if not isinstance(processor, LlavaProcessor):
        raise UserError(
            f"LLaVA {path_or_id!r} has no LlavaProcessor, but a {type(processor).__name__}: processor_config.json, "
            "preprocessor_config.json or the tokenizer is missing."
        )
    processor.tokenizer = read_tokenizer(f"LLaVA {path_or_id!r}", folder)
    check_weights(path_or_id, what="LLaVA")
    return LlavaFolder(path_or_id, folder, config, processor)


def processor_for(tower: Tower, tokenizer, pads: bool, **kwargs) -> LlavaProcessor:
    """A processor that makes as many image tokens as the tower makes features."""
    return LlavaProcessor(
        tower.padding_processor() if pads else tower.image_processor,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=tower.kind.strategy,
        num_additional_image_tokens=tower.kind.additional_tokens,
        **kwargs,
    )


@contextmanager
def made_whole(output: Path, needed: int) -> Iterator[Path]:
    """Around the writing of a folder, which gets its name once it is complete and checked; a failure leaves nothing.

    Raises:
        ExportError: its weights are not those of its configuration.
        OSError: names the folder and, where space is short, the bytes that are missing.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(partial, needed, "Make room"):
        partial.mkdir()
        yield partial
        _check_whole(partial)
    partial.rename(output)


def save_processor(processor: LlavaProcessor, folder: Path, tokenizer_from: Path | None = None) -> None:
    """The processor's files, its image processor also where older readers look for it.

    Args:
        tokenizer_from: where the tokenizer's own files are, to be copied byte by byte.
    """
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for file in tokenizer_from.iterdir() if tokenizer_from else ():
        small = file.suffix in (".json", ".jinja", ".model", ".txt") and not file.name.endswith(".index.json")
        if small and file.name not in _OWN:
            shutil.copyfile(file, folder / file.name)


def _check_whole(folder: Path) -> None:
    """Every weight of the model is there; what older versions saved beside them, such as constants, may be too."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
    expected = {canonical(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with opened(file) as tensors:
            found |= {canonical(name): tuple(read().shape) for name, read in tensors.items()}
    wrong = sorted(name for name, shape in expected.items() if found.get(name) != shape)
    if wrong:
        raise ExportError(
            f"{len(wrong)} weights are not those of the configuration, such as {wrong[0]}: "
            f"{found.get(wrong[0], 'missing')}, expected {expected[wrong[0]]}."
        )
