"""Models from disk, complete or refused; the dual encoder with the weights of stage 2 merged in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import logging

from dcr_hf.errors import UserError, as_user_error
from dcr_hf.hub import hub_id, model_folder
from dcr_hf.models.families import read_encoder_config
from dcr_hf.models.headers import read_pickled
from dcr_hf.models.reading import SIDE_FILE_ERRORS, WEIGHT_ERRORS
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS

Model = TypeVar("Model", bound=PreTrainedModel)


def load_complete(
    model_class: type[Model], what: str, path_or_id: str | Path, dtype: torch.dtype, part: str = "", **kwargs: Any
) -> Model:
    """`model_class.from_pretrained`, refused where transformers would leave weights random.

    Its `name_or_path` is `path_or_id`, a folder's absolute.

    Args:
        what: whose weights they are, for the message: "encoder".
        path_or_id: folder or hub id.
        part: the model's folder in it.
        kwargs: passed on to `from_pretrained`.

    Raises:
        UserError: no weights, broken ones, missing ones, or some of another shape than the configuration's.
    """
    who = f"{what} {str(path_or_id)!r}{f': {part}' if part else ''}"
    folder, weights = model_folder(path_or_id, part, what)
    if not weights.safetensors:
        for name in weights.files:
            if name.endswith(".bin"):
                read_pickled(who, folder / name)  # transformers would fail on a broken one in any way
    with as_user_error(who, *WEIGHT_ERRORS):
        loaded = model_class.from_pretrained(
            folder,
            subfolder=part,
            variant=weights.variant,
            use_safetensors=weights.safetensors,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    model, report = cast(tuple[Model, dict[str, Any]], loaded)
    check_complete(who, report)
    model.name_or_path = str(path_or_id) if hub_id(str(path_or_id)) else str(folder.absolute())
    return model


def check_complete(who: str, report: dict[str, Any]) -> None:
    """Raise a UserError if a `from_pretrained` left weights random.

    Args:
        who: whose weights they are, for the message.
        report: its `output_loading_info`.
    """
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{who} lacks {len(missing)} weights, such as {missing[0]}.")
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"], key=lambda entry: entry[0])
        raise UserError(f"{who}: {name} has the shape {tuple(found)}, its config.json says {tuple(expected)}.")


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
    """The dual encoder in float32, text tower included, in eval mode.

    Args:
        path_or_id: the base.
        trained: a result or checkpoint of stage 2, whose adapter is merged into the weights, or whose vision weights
            replace the base's.

    Raises:
        UserError: no CLIP or SigLIP; weights that are missing, broken, or of another base.
    """
    _, family = read_encoder_config(path_or_id)
    model = load_complete(family.dual_class, "encoder", path_or_id, torch.float32).eval()
    if trained is None:
        return model
    if (Path(trained) / ADAPTER_WEIGHTS).is_file():
        with as_user_error(f"adapter {trained}", SafetensorError, *SIDE_FILE_ERRORS):
            return PeftModel.from_pretrained(model, trained).merge_and_unload()
    with as_user_error(f"{Path(trained) / VISION_WEIGHTS}", OSError, SafetensorError):
        weights = load_file(Path(trained) / VISION_WEIGHTS)
    expected = {name for name, _ in model.named_parameters() if name.startswith(family.export_prefixes)}
    if weights.keys() != expected:
        raise UserError(
            f"{trained} holds other weights than the vision side of {path_or_id!r}: "
            f"{sorted(weights.keys() ^ expected)[:3]} ... Give the base that it was trained from."
        )
    model.load_state_dict(weights, strict=False)
    return model
