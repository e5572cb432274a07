"""CLIP-family encoders: what a checkpoint is, its vision side as images -> z, and LoRA on exactly that side."""

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.utils import logging

# What stage 2 leaves: peft's adapter, or the whole vision side.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VISION_WEIGHTS = "vision.safetensors"

_LAYER_LINEARS = r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"


@dataclass(frozen=True)
class Family:
    """What differs between two kinds of dual encoder; everything else is read from the checkpoint."""

    dual_class: type[PreTrainedModel]
    vision_class: type[PreTrainedModel]
    layer: str
    """Class name of a transformer layer: the unit that FSDP shards."""
    lora_targets: str
    """Regular expression over module names: every linear layer between the pixels and z that gets a gradient."""
    beside_vision: tuple[str, ...]
    """Modules and parameters of the dual encoder that images do not pass."""
    class_tokens: int
    """Of the vision tower's last hidden states, those that stand before the patches'."""
    export_prefixes: tuple[str, ...]
    """Where an exported weight may differ from the original: the vision side."""


# SigLIP pools with nn.MultiheadAttention, which reads the weights of its `out_proj` without calling the layer: an
# adapter there would never see an input.
FAMILIES = {
    "clip": Family(
        dual_class=CLIPModel,
        vision_class=CLIPVisionModel,
        layer="CLIPEncoderLayer",
        lora_targets=rf"{_LAYER_LINEARS}|visual_projection",
        beside_vision=("text_model", "text_projection", "logit_scale"),
        class_tokens=1,
        export_prefixes=("vision_model.", "visual_projection."),
    ),
    "siglip": Family(
        dual_class=SiglipModel,
        vision_class=SiglipVisionModel,
        layer="SiglipEncoderLayer",
        lora_targets=rf"{_LAYER_LINEARS}|vision_model\.head\.mlp\.(fc1|fc2)",
        beside_vision=("text_model", "logit_scale", "logit_bias"),
        class_tokens=0,
        export_prefixes=("vision_model.",),
    ),
}

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_SIDE_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")


def local_folder(path_or_id: str, patterns: Iterable[str] = _SIDE_FILES) -> Path:
    """The folder itself, or the hub repository's files that match `patterns`, downloaded to the cache."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise FileNotFoundError(
            f"{path_or_id!r} is neither a folder here nor a hub id of the form 'owner/name'. "
            "Give the path of a folder that save_pretrained wrote, or an id."
        )
    return Path(snapshot_download(path_or_id, allow_patterns=list(patterns)))


def read_encoder_config(path_or_id: str) -> tuple[PreTrainedConfig, Family]:
    """The checkpoint's configuration and its family, by `model_type`. Reads no weights."""
    folder = local_folder(path_or_id)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"encoder {path_or_id!r} has no config.json: it is not a folder that transformers' save_pretrained wrote."
        )
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"encoder {path_or_id!r} is a {config.model_type!r} model; supported are {', '.join(FAMILIES)} (the whole "
            "dual encoder, text tower included, not the vision tower alone)."
        )
    return config, FAMILIES[config.model_type]


def embedding_width(config: PreTrainedConfig) -> int:
    """D, the width of z: CLIP projects its pooled output, SigLIP's is z itself."""
    return config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size


def patch_width(config: PreTrainedConfig) -> int:
    """W, the width of the vision tower's hidden states."""
    return config.vision_config.hidden_size


def check_encoder(path_or_id: str) -> int:
    """Raise, before anything is loaded, if the checkpoint lacks what training or the export will need.

    Returns:
        D, the width of its embeddings.

    Raises:
        FileNotFoundError: configuration, weights, image processor or tokenizer missing.
        ValueError: no CLIP or SigLIP; an image size that the denoiser's VAE cannot take.
    """
    config, _ = read_encoder_config(path_or_id)
    folder = local_folder(path_or_id)
    is_local = Path(path_or_id).expanduser().is_dir()
    wanted = {
        "an image processor": ("preprocessor_config.json", "processor_config.json"),
        "a tokenizer": _TOKENIZER_FILES,
    }
    if is_local:  # a hub repository's weights are not downloaded for a check
        wanted["weights"] = (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        )
    for what, names in wanted.items():
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"encoder {path_or_id!r} lacks {what}: none of {', '.join(names)} is in it.")
    if config.vision_config.image_size % 8:
        raise ValueError(
            f"encoder {path_or_id!r} takes images of {config.vision_config.image_size} pixels, which is no multiple "
            "of 8: the denoiser's VAE cannot encode them to whole latents."
        )
    return embedding_width(config)


class Features(NamedTuple):
    """What the vision side makes of B images, in one forward pass."""

    embeddings: Tensor
    """z = f(x), (B, D), not normalised to unit length"""
    patches: Tensor
    """the last hidden states of the N patches, (B, N, W)"""


class ImageEncoder(nn.Module):
    """The vision side of a CLIP-family model: images in [0, 1] -> z = f(x).

    The text side is dropped after loading: nothing here uses it, and it is as large as the vision side. Module names
    are kept, so that adapters trained here load on the full dual encoder.

    Attributes:
        model: the dual encoder without its text side; a `PeftModel` around it once LoRA is added.
        image_size: side of the square input, in pixels.
        embedding_width: D, the width of z.
        patch_width: W, the width of the patches' hidden states.
        patch_count: N, how many patches an image has.
        mean, std: (1, 3, 1, 1), the checkpoint's own pixel statistics.
        frozen_copy: the model as it was, where `keep_original` was called; None otherwise.
    """

    def __init__(self, model: PreTrainedModel, family: Family, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        for name in family.beside_vision:
            delattr(model, name)
        self.model = model.requires_grad_(False)
        self.frozen_copy: PreTrainedModel | None = None
        self.family = family
        vision = model.config.vision_config
        self.image_size: int = vision.image_size
        self.embedding_width = embedding_width(model.config)
        self.patch_width = patch_width(model.config)
        self.patch_count = (vision.image_size // vision.patch_size) ** 2
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, path_or_id: str) -> "ImageEncoder":
        """Load a CLIP or SigLIP folder or id in float32, frozen.

        Raises:
            ValueError: not a CLIP or SigLIP, or an image processor of another size than the tower.
        """
        config, family = read_encoder_config(path_or_id)
        processor = AutoImageProcessor.from_pretrained(path_or_id)
        size = processor.crop_size or processor.size
        if size["height"] != config.vision_config.image_size:
            raise ValueError(
                f"encoder {path_or_id!r}: its image processor makes {size['height']} pixels, its vision tower takes "
                f"{config.vision_config.image_size}. Correct preprocessor_config.json."
            )
        return cls(_load_complete(path_or_id, family), family, processor.image_mean, processor.image_std)

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the encoder's own pixel space."""
        return (images - self.mean) / self.std

    def denormalize(self, pixel_values: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        return pixel_values * self.std + self.mean

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> z (B, D), not normalised to unit length."""
        return self.features(images).embeddings

    def features(self, images: Tensor) -> Features:
        """(B, 3, H, W) in [0, 1] -> z and the patches' last hidden states."""
        return self._features(self.model, images)

    def _features(self, model: PreTrainedModel | PeftModel, images: Tensor) -> Features:
        output = model.get_image_features(pixel_values=self.normalize(images))
        return Features(output.pooler_output, output.last_hidden_state[:, self.family.class_tokens :])

    @torch.no_grad()
    def original(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> z (B, D) of the encoder as it was before training, in eval mode.

        With adapters the base is asked without them. Without, `keep_original` must have been called before training.
        """
        if self.frozen_copy is not None:
            return self._features(self.frozen_copy.eval(), images).embeddings
        training = self.model.training
        with self.model.eval().disable_adapter():
            embeddings = self._features(self.model, images).embeddings
        self.model.train(training)
        return embeddings

    def keep_original(self) -> None:
        """Keep a frozen copy of the vision side as it is now, for `original`."""
        self.frozen_copy = copy.deepcopy(self.model)

    def unfreeze(self) -> None:
        """Train the whole vision side itself, without adapters."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(self.family.export_prefixes))

    def add_lora(self, rank: int, alpha: float, dropout: float) -> None:
        """Wrap every linear layer of the vision side in a trainable LoRA adapter; the rest stays frozen."""
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=self.family.lora_targets, bias="none"
        )
        self.model = get_peft_model(self.model, config)


def _load_complete(path_or_id: str, family: Family) -> PreTrainedModel:
    model, report = family.dual_class.from_pretrained(path_or_id, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:  # transformers would leave them random, with no error
        missing = sorted(report["missing_keys"])
        raise ValueError(f"encoder {path_or_id!r} lacks {len(missing)} weights, such as {missing[0]}.")
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' report of weights that a model does not take: here that is meant."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def trained_base(folder: str | Path) -> str:
    """The base that what stage 2 left in `folder` belongs to, as it was named in training.

    Raises:
        ValueError: the files do not say.
    """
    adapter, vision = Path(folder) / "adapter_config.json", Path(folder) / VISION_WEIGHTS
    if adapter.is_file():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
    else:
        with safe_open(vision, framework="pt") as weights:
            base = weights.metadata().get("base_model_name_or_path")
    if not base:
        raise ValueError(f"what stage 2 left in {folder} names no base model (base_model_name_or_path).")
    return base


def has_encoder(folder: str | Path) -> bool:
    """Whether a folder holds what stage 2 trained."""
    return any((Path(folder) / name).is_file() for name in (ADAPTER_WEIGHTS, VISION_WEIGHTS))


def load_dual_encoder(path_or_id: str, trained: str | Path | None = None) -> PreTrainedModel:
    """The whole dual encoder in float32, text tower included, in eval mode.

    Args:
        path_or_id: the base.
        trained: a result or checkpoint of stage 2, whose adapter is merged into the weights, or whose vision weights
            replace the base's.
    """
    _, family = read_encoder_config(path_or_id)
    model = _load_complete(path_or_id, family).eval()
    if trained is None:
        return model
    if (Path(trained) / ADAPTER_WEIGHTS).is_file():
        return PeftModel.from_pretrained(model, trained).merge_and_unload()
    weights = load_file(Path(trained) / VISION_WEIGHTS)
    expected = {name for name, _ in model.named_parameters() if name.startswith(family.export_prefixes)}
    if weights.keys() != expected:
        raise ValueError(
            f"{trained} holds other weights than the vision side of {path_or_id!r}: "
            f"{sorted(weights.keys() ^ expected)[:3]} ... Give the base that it was trained from."
        )
    model.load_state_dict(weights, strict=False)
    return model
