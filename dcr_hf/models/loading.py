"""The complete dual encoder from disk, with what stage 2 trained merged in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import logging

from dcr_hf.errors import UserError, as_user_error
from dcr_hf.models.families import Family, read_encoder_config
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS


def load_complete(path_or_id: str, family: Family) -> PreTrainedModel:
    """The dual encoder in float32; raises a UserError if the checkpoint lacks weights."""
    with as_user_error(f"encoder {path_or_id!r}", OSError, SafetensorError):
        loaded: Any = family.dual_class.from_pretrained(path_or_id, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:  # transformers would leave them random, with no error
        missing = sorted(report["missing_keys"])
        raise UserError(f"encoder {path_or_id!r} lacks {len(missing)} weights, such as {missing[0]}.")
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress expected unused-weight warnings."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_dual_encoder(path_or_id: str, trained: str | Path | None = None) -> PreTrainedModel:
    """The complete dual encoder in float32, text tower included, in eval mode.

    Args:
        path_or_id: the base.
        trained: a result or checkpoint of stage 2, whose adapter is merged into the weights, or whose vision weights
            replace the base's.
    """
    _, family = read_encoder_config(path_or_id)
    model = load_complete(path_or_id, family).eval()
    if trained is None:
        return model
    if (Path(trained) / ADAPTER_WEIGHTS).is_file():
        return PeftModel.from_pretrained(model, trained).merge_and_unload()
    weights = load_file(Path(trained) / VISION_WEIGHTS)
    expected = {name for name, _ in model.named_parameters() if name.startswith(family.export_prefixes)}
    if weights.keys() != expected:
        raise UserError(
            f"{trained} holds other weights than the vision side of {path_or_id!r}: "
            f"{sorted(weights.keys() ^ expected)[:3]} ... Give the base that it was trained from."
        )
    model.load_state_dict(weights, strict=False)
    return model
