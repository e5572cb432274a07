"""Does a folder meet what LLaVA's own code asks of a vision tower? Found out without LLaVA, by headers alone.

LLaVA-1.5 reads a tower with CLIPImageProcessor and CLIPVisionModel of transformers 4.37.2 (LLaVA 1.1.1: 4.31.0) and
takes `hidden_states[-2]` without token 0. The conditions are those of the releases' builder.py and clip_encoder.py; of
LLaVA-NeXT, of its siglip_encoder.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.hub import hub_id, local_folder, model_folder
from dcr_hf.llava.weights import opened, weight_files
from dcr_hf.models.reading import read_config, read_json

_PREFIX = "vision_model."
_NEXT_SIGLIP_TOKENS = 729


@dataclass(frozen=True)
class Finding:
    """One condition: whether it holds, what it is about, what was found and, if it does not hold, what to do."""

    holds: bool
    about: str
    message: str


def check_tower(path: str) -> list[Finding]:
    """What LLaVA-1.5 needs of the folder itself.

    Raises:
        NotFoundError: no folder, or one without a configuration.
    """
    try:
        folder = local_folder(path, what="encoder")
    except NotFoundError as error:
        raise NotFoundError(f"{error} A run exports such a folder, OUT/NAME-dcr-vision.") from error
    config = read_config(repr(path), folder)
    if config.model_type not in ("clip", "clip_vision_model"):
        return [Finding(False, "configuration", _not_clip(config))]
    vision = config.vision_config if config.model_type == "clip" else config
    if hub_id(path):
        folder, _ = model_folder(path, what="encoder")
    geometry = f"CLIP, {vision.num_hidden_layers} layers of width {vision.hidden_size}, {vision.image_size} pixels"
    tokens = f"{(vision.image_size // vision.patch_size) ** 2} image tokens"
    return [
        Finding(True, "configuration", f"{geometry}, {tokens}"),
        _weights(folder, vision),
        _image_processor(folder, vision.image_size),
        _layers(vision.num_hidden_layers),
    ]


def _not_clip(config: PreTrainedConfig) -> str:
    if config.model_type not in ("siglip", "siglip_vision_model"):
        return f"a {config.model_type!r} model; LLaVA-1.5 reads its tower as a CLIP."
    vision = config.vision_config if config.model_type == "siglip" else config
    tokens = (vision.image_size // vision.patch_size) ** 2
    text = (
        "a SigLIP; LLaVA-1.5 would read it as a CLIP, with random weights where the names differ, and say nothing. "
        "Use transformers' LLaVA: python -m dcr_hf.llava swap, recipes/llava15.py. "
    )
    if tokens != _NEXT_SIGLIP_TOKENS:
        return text + f"LLaVA-NeXT's SigLIP tower takes 729 tokens (384 pixels) only; this one makes {tokens}."
    return text + (
        "LLaVA-NeXT has a SigLIP tower, which deletes the last layer and takes the rest's last output, but it takes "
        "every path that exists for a CLIP: the tower must be named by a hub id with 'siglip' in it."
    )


def _weights(folder: Path, vision: PreTrainedConfig) -> Finding:
    with torch.device("meta"):
        tower = CLIPVisionModel(cast(CLIPVisionConfig, vision))
    expected = {_PREFIX + n.removeprefix(_PREFIX): tuple(p.shape) for n, p in tower.named_parameters()}
    found: dict[str, tuple[int, ...]] = {}
    bare: list[str] = []
    try:
        for file in weight_files(folder):
            if file.suffix == ".safetensors" and not _names_its_format(file):
                message = (
                    f"{file.name} does not say its format, which transformers 4.37.2 wants: save it again with it."
                )
                return Finding(False, "keys", message)
            with opened(file) as tensors:
                found |= {name: tuple(read().shape) for name, read in tensors.items() if name in expected}
                bare += [name for name in tensors if _PREFIX + name in expected]
    except UserError as error:
        return Finding(False, "keys", str(error))
    if bare and not found:
        message = (
            f"names such as {bare[0]} without the prefix {_PREFIX}: transformers 4.37.2 would give every weight a "
            "random value, with no error. Export the tower with python -m dcr_hf.export, which keeps the prefix."
        )
        return Finding(False, "keys", message)
    missing = sorted(expected.keys() - found.keys())
    if missing:
        message = f"{len(missing)} of {len(expected)} weights are missing, such as {missing[0]}: they would be random."
        return Finding(False, "keys", message)
    other = [name for name, shape in expected.items() if found[name] != shape]
    if other:
        message = f"{other[0]} has the shape {found[other[0]]}; the configuration says {expected[other[0]]}."
        return Finding(False, "keys", message)
    return Finding(True, "keys", f"all {len(expected)} weights, with the prefix {_PREFIX}")


def _names_its_format(file: Path) -> bool:
    with as_user_error(str(file), OSError, SafetensorError), safe_open(file, framework="pt") as weights:
        return (weights.metadata() or {}).get("format") == "pt"


def _image_processor(folder: Path, side: int) -> Finding:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        message = "preprocessor_config.json is missing: older transformers look nowhere else. Copy the base model's."
        return Finding(False, "image processor", message)
    fields = read_json("image processor", file)
    missing = [name for name in ("crop_size", "image_mean", "image_std", "size") if not fields.get(name)]
    if missing:
        message = f"preprocessor_config.json has no {', '.join(missing)}, which LLaVA reads. Copy the base model's."
        return Finding(False, "image processor", message)
    crop = fields["crop_size"]["height"] if isinstance(fields["crop_size"], dict) else fields["crop_size"]
    if crop != side:
        message = f"preprocessor_config.json crops to {crop} pixels, the tower takes {side}. Correct it."
        return Finding(False, "image processor", message)
    return Finding(True, "image processor", f"crops to {crop} pixels, pads with the mean {fields['image_mean']}")


def _layers(count: int) -> Finding:
    if count < 2:
        return Finding(False, "layers", f"{count}: hidden_states[-2], which LLaVA takes, would be no layer's output.")
    return Finding(True, "layers", f"hidden_states[-2] is the output of layer {count - 1} of {count}")


def check_name(path: str) -> list[Finding]:
    """What each release makes of a CLIP tower by the way its path is written."""
    if hub_id(path):
        named = path.startswith(("openai", "laion"))
        what = f"takes --vision_tower {path}" if named else "takes a folder, or an id that begins with openai or laion"
        return [Finding(named, "LLaVA's names", what)]
    folder = Path(path).expanduser()
    named = path.startswith(("openai", "laion"))
    link = f"ln -s {folder.resolve().parent} openai"
    return [
        Finding(
            named,
            "LLaVA 1.1.1",
            f"takes --vision_tower {path}"
            if named
            else "takes only names that begin with openai or laion. In the folder that you train from: "
            f"{link}; then --vision_tower openai/{folder.resolve().name}",
        ),
        Finding(True, "LLaVA 1.2.2", f"takes any path that exists: --vision_tower {folder.resolve()}"),
        Finding(True, "LLaVA-NeXT", f"takes any path that exists, as a CLIP: --vision_tower {folder.resolve()}"),
    ]
