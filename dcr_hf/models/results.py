"""What stage 2 leaves on disk: an adapter, or the weights of the vision side."""

import json
from pathlib import Path

from safetensors import safe_open

from dcr_hf.errors import UserError

# What stage 2 leaves: peft's adapter, or the whole vision side.
ADAPTER_WEIGHTS = "adapter_model.safetensors"


VISION_WEIGHTS = "vision.safetensors"


def trained_base(folder: str | Path) -> str:
    """The base that what stage 2 left in `folder` belongs to, as it was named in training.

    Raises:
        UserError: the files do not say.
    """
    adapter, vision = Path(folder) / "adapter_config.json", Path(folder) / VISION_WEIGHTS
    if adapter.is_file():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
    else:
        with safe_open(vision, framework="pt") as weights:
            base = weights.metadata().get("base_model_name_or_path")
    if not base:
        raise UserError(f"what stage 2 left in {folder} names no base model (base_model_name_or_path).")
    return base


def has_encoder(folder: str | Path) -> bool:
    """Whether a folder holds what stage 2 trained."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER_WEIGHTS, VISION_WEIGHTS))
