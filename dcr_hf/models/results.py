"""The files of a stage 2 result: an adapter, or the weights of the vision side."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from dcr_hf.errors import UserError, as_user_error
from dcr_hf.hub import find_pin, hub_id
from dcr_hf.models.reading import read_json

# A result of stage 2: peft's adapter, or the complete vision side.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VISION_WEIGHTS = "vision.safetensors"
# Beside it: the images on which training measures how far the encoder has moved, and their embeddings before.
FIXED_IMAGES = "moved.safetensors"


def trained_base(folder: str | Path) -> str:
    """The base model of the stage-2 result in `folder`: its folder, or 'owner/name@commit'.

    Raises:
        UserError: the files are broken or do not name it.
    """
    adapter, vision = Path(folder) / "adapter_config.json", Path(folder) / VISION_WEIGHTS
    if adapter.is_file():
        named = read_json("adapter", adapter)
    else:
        with as_user_error(str(vision), OSError, SafetensorError), safe_open(vision, framework="pt") as weights:
            named = weights.metadata() or {}
    base, revision = named.get("base_model_name_or_path"), named.get("revision")
    if not base:
        raise UserError(f"the stage-2 result in {folder} names no base model (base_model_name_or_path).")
    return f"{base}@{revision}" if revision and hub_id(base) else base


def base_of(path_or_id: str) -> tuple[str, str | None]:
    """What a result names as its base: a folder; or a repository and the commit at which this process loaded it."""
    found = find_pin(path_or_id)
    return (found.repository, found.commit) if found else (path_or_id, None)


def has_encoder(folder: str | Path) -> bool:
    """True if the folder holds a result of stage 2."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER_WEIGHTS, VISION_WEIGHTS))
