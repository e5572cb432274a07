"""Files of a model folder that a user gave: read, or refused by name."""

import json
import struct
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch._weights_only_unpickler import UnpicklingError
from transformers import AutoConfig, PreTrainedConfig

from dcr_hf.errors import NotFoundError, UserError, as_user_error

# What transformers raises for a configuration, tokenizer or image processor that it cannot read.
SIDE_FILE_ERRORS = (OSError, ValueError, StrictDataclassError)
# What transformers raises for weights that are missing, cut off or of another format.
WEIGHT_ERRORS = (OSError, SafetensorError, UnpicklingError, EOFError)
# What torch.load raises, by kind of damage.
TORCH_FILE_ERRORS = (OSError, RuntimeError, UnpicklingError, EOFError, LookupError, ValueError, struct.error)


def read_json(who: str, file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        who: whose file it is, for the message.

    Raises:
        UserError: unreadable, no JSON, or no object.
    """
    with as_user_error(f"{who}: {file}", OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{who}: {file} must hold a JSON object, found {type(content).__name__}.")
    return content


def read_config(who: str, folder: Path, remedy: str = "it is no model folder.") -> PreTrainedConfig:
    """The configuration of a transformers model. Reads no weights.

    Raises:
        NotFoundError: no config.json.
        UserError: it is broken, or of a model that transformers does not know.
    """
    if not (folder / "config.json").is_file():
        raise NotFoundError(f"{who} has no config.json: {remedy}")
    with as_user_error(f"{who}: config.json", *SIDE_FILE_ERRORS):
        return AutoConfig.from_pretrained(folder)
