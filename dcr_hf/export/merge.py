"""Adapter -> enhanced encoder: merge, check, save as ordinary CLIP or SigLIP folders, with a model card."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from dcr_hf.errors import AlreadyExistsError, NotFoundError, UserError
from dcr_hf.export.card import write_card
from dcr_hf.export.run_facts import RunFacts
from dcr_hf.hub import hub_id, local_folder
from dcr_hf.models.families import Family, read_encoder_config
from dcr_hf.models.loading import load_dual_encoder, quietly
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS, has_encoder

# What a folder needs beside configuration and weights, copied from the base byte by byte: older transformers read
# the files that its own authors wrote, not what a newer version would make of them.
_SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
_IMAGE_SIDE_FILES = ("preprocessor_config.json", "processor_config.json")


class ExportError(UserError, RuntimeError):
    """The exported model is not what it must be; nothing was put in place."""


def export_folders(encoder: str, output_dir: str | Path) -> tuple[Path, Path]:
    """OUT/SLUG-dcr and OUT/SLUG-dcr-vision. SLUG keeps "clip" or "siglip" in the name: LLaVA's forks look for it."""
    named = hub_id(encoder)
    slug = Path(named[0]).name if named else Path(encoder).expanduser().absolute().name
    return Path(output_dir) / f"{slug}-dcr", Path(output_dir) / f"{slug}-dcr-vision"


def export_encoder(
    encoder: str, trained: str | Path, output_dir: str | Path, facts: RunFacts | None = None, overwrite: bool = False
) -> tuple[Path, Path]:
    """Merge what stage 2 trained into its base and write the enhanced dual encoder and its vision tower.

    Both are written under temporary names, checked and renamed, so that a killed export leaves nothing that looks
    complete.

    Args:
        encoder: the base, a CLIP or SigLIP folder or id.
        trained: what stage 2 left, OUT/stage2 or a checkpoint in it: peft's adapter or the vision side's weights.
        output_dir: OUT.
        facts: how it was trained, for the model card.
        overwrite: replace folders that exist.

    Returns:
        the folders of the dual encoder and of the vision tower.

    Raises:
        NotFoundError: nothing trained there.
        AlreadyExistsError: exported before, and not `overwrite`.
        ExportError: a check failed.
    """
    trained, targets = Path(trained), export_folders(encoder, output_dir)
    if not has_encoder(trained):
        raise NotFoundError(
            f"{trained} holds neither {ADAPTER_WEIGHTS} nor {VISION_WEIGHTS}: it is no result or checkpoint of "
            "stage 2."
        )
    for target in targets:
        if target.exists() and not overwrite:
            raise AlreadyExistsError(f"{target} exists. Remove it, or give --overwrite_output_dir.")
    config, family = read_encoder_config(encoder)
    original = load_dual_encoder(encoder)
    merged = load_dual_encoder(encoder, trained)
    if (trained / ADAPTER_WEIGHTS).is_file():
        _check_merged(merged, PeftModel.from_pretrained(copy.deepcopy(original), trained).eval())
    _check_weights(original.state_dict(), merged.state_dict(), family)

    partial = [target.with_name(f".{target.name}.unfinished") for target in targets]
    for folder in partial:
        shutil.rmtree(folder, ignore_errors=True)
    dual, vision = partial
    merged.save_pretrained(dual)
    _save_tower(dual, vision, family)
    _check_keys(dual, vision)
    copy_side_files(encoder, dual)
    _copy(local_folder(encoder), vision, _IMAGE_SIDE_FILES)
    for folder, target in zip(partial, targets, strict=True):
        write_card(folder, target.name, encoder, config, facts)
    for folder, target in zip(reversed(partial), reversed(targets), strict=True):  # the dual encoder last
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    return targets


@torch.no_grad()
def _check_merged(merged: PreTrainedModel, adapted: PeftModel) -> None:
    """The merged model's features must be those of the adapter beside the base."""
    size = merged.config.vision_config.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    original: Any = adapted.get_base_model()
    enhanced: Any = merged  # PreTrainedModel does not say that its subclasses have image features
    expected = original.get_image_features(pixel_values=images).pooler_output
    found = enhanced.get_image_features(pixel_values=images).pooler_output
    error = float((found - expected).norm() / expected.norm())
    if not error < 1e-4:  # also true for NaN
        raise ExportError(f"features of the merged model differ from the adapter's by {error:.1e} (relative).")


def _check_weights(original: dict[str, Tensor], merged: dict[str, Tensor], family: Family) -> None:
    if merged.keys() != original.keys():
        raise ExportError(f"merging changed the names of weights: {sorted(merged.keys() ^ original.keys())[:4]} ...")
    for name, tensor in merged.items():
        if not tensor.isfinite().all():
            raise ExportError(f"{name} has values that are not finite.")
        if not name.startswith(family.export_prefixes) and not torch.equal(tensor, original[name]):
            raise ExportError(f"{name} lies outside the vision side and has changed.")


def _save_tower(dual: Path, vision: Path, family: Family) -> None:
    """By way of the full folder: a tower that came from one keeps the prefix of its keys, one taken from a model in
    memory loses it. That the text side is not loaded is meant, so the report of it is kept quiet."""
    with quietly():
        family.vision_class.from_pretrained(dual, dtype=torch.float32).save_pretrained(vision)


def _check_keys(dual: Path, vision: Path) -> None:
    """The vision tower's keys are the dual encoder's: LLaVA's transformers 4.37.2 gives a tower without the prefix
    random weights, and does not say so."""
    expected = {key for key in _keys(dual) if key.startswith("vision_model.")}
    if _keys(vision) != expected or not expected:
        raise ExportError(
            f"the vision tower's keys are not those of the dual encoder: {sorted(_keys(vision) ^ expected)[:4]} ..."
        )


def _keys(folder: Path) -> set[str]:
    keys: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            keys.update(weights.keys())
    return keys


def copy_side_files(encoder: str, folder: Path) -> None:
    """Copy what a dual encoder's folder needs beside configuration and weights, as its authors wrote it."""
    _copy(local_folder(encoder), folder, _SIDE_FILES)


def _copy(base: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def export_run(output_dir: str | Path, checkpoint: str | None = None, overwrite: bool = False) -> tuple[Path, Path]:
    """Export what a run left in `output_dir`: what trained the encoder, or one of its checkpoints.

    That of a checkpoint goes into a folder of its own: a run whose export is there counts as finished.

    Returns:
        the folders of the dual encoder and of the vision tower, in OUT or in OUT/CHECKPOINT.

    Raises:
        NotFoundError, AlreadyExistsError, ExportError: as `export_encoder`.
    """
    output_dir = Path(output_dir)
    facts = RunFacts.read(output_dir)
    stage = facts.encoder_stage
    trained = output_dir / stage / (checkpoint or "")
    if not has_encoder(trained):
        found = [path for path in output_dir.glob(f"{stage}/checkpoint-*") if has_encoder(path)]
        known = [path.name for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))]
        reason = f"{stage} has not finished there" if checkpoint is None else "there is no such checkpoint"
        raise NotFoundError(
            f"{trained} holds no {ADAPTER_WEIGHTS} or {VISION_WEIGHTS}: {reason}. "
            + (f"Export one of its checkpoints with --checkpoint: {', '.join(known)}." if known else "Run it first.")
        )
    facts.pin_encoder()
    target = export_target(output_dir, checkpoint)
    return export_encoder(facts.encoder, trained, target, facts.with_log_of(trained), overwrite)


def export_target(output_dir: str | Path, checkpoint: str | None) -> Path:
    """Where the export of OUT goes, or of one of its checkpoints: OUT, OUT/checkpoint-500."""
    return Path(output_dir) / Path(checkpoint or "").name
