"""The projector, and ConditionModel = encoder + projector: the only module that is trained."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcr_hf.encoder import ADAPTER_WEIGHTS, VISION_WEIGHTS, ImageEncoder

PROJECTOR_FOLDER = "projector"
PROJECTOR_WEIGHTS = "model.safetensors"


class Projector(nn.Module, PyTorchModelHubMixin, library_name="dcr_hf", tags=["dcr"]):
    """h: image embeddings z (..., D) -> conditions c (..., C) for the denoiser's cross-attention."""

    def __init__(self, embedding_width: int, condition_width: int):
        super().__init__()
        self.embedding_width = embedding_width
        self.condition_width = condition_width
        self.layers = nn.Sequential(
            nn.LayerNorm(embedding_width),
            nn.Linear(embedding_width, condition_width),
            nn.GELU(),
            nn.Linear(condition_width, condition_width),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)


class Encoded(NamedTuple):
    """What the trained model makes of B images."""

    embeddings: Tensor
    """z = f(x), (B, D)"""
    conditions: Tensor
    """c = h(z), (B, C)"""
    originals: Tensor | None = None
    """the original encoder's z of the first images, (K, D), without gradient"""


class ConditionModel(nn.Module):
    """Images in [0, 1] -> embeddings z = f(x) and conditions c = h(z). What is trained is what requires a gradient."""

    def __init__(self, encoder: ImageEncoder, projector: Projector):
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self._no_split_modules = [encoder.family.layer]  # FSDP's unit, under the name that accelerate looks for

    def forward(self, images: Tensor, originals: int = 0) -> Encoded:
        """(B, 3, H, W) in [0, 1] -> z (B, D) and c (B, C).

        Args:
            originals: of so many of the images, the first, also what the original encoder says. In the same call,
                since a strategy that divides the weights has them together only here.
        """
        original = self.encoder.original(images[:originals]) if originals else None
        embeddings = self.encoder(images)
        return Encoded(embeddings, self.projector(embeddings), original)

    @property
    def trains_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    @property
    def trains_projector(self) -> bool:
        return any(parameter.requires_grad for parameter in self.projector.parameters())

    def train(self, mode: bool = True) -> "ConditionModel":
        """A frozen encoder stays in eval mode, so that stage 1 sees the encoder as it will be used."""
        super().train(mode)
        self.encoder.train(mode and self.trains_encoder)
        return self

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """`--gradient_checkpointing`: recompute the encoder's layers in the backward pass."""
        # Of the vision tower: for the whole SigLIP transformers looks for the text side, which was dropped.
        self.encoder.model.vision_model.gradient_checkpointing_enable(**kwargs)

    def save_trained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what is trained and nothing else: `projector/`; peft's adapter files, or the vision side's weights.

        Args:
            folder: made if it does not exist.
            state_dict: this module's weights, where they had to be gathered from several devices.
        """
        state_dict = self.state_dict() if state_dict is None else state_dict
        if self.trains_projector:
            with torch.device("meta"):  # not initialised: that would draw from the generator that training uses
                gathered = Projector(self.projector.embedding_width, self.projector.condition_width)
            gathered.load_state_dict(_below("projector.", state_dict), assign=True)
            gathered.save_pretrained(Path(folder) / PROJECTOR_FOLDER)
        if self.trains_encoder and isinstance(self.encoder.model, PeftModel):
            self.encoder.model.save_pretrained(folder, state_dict=_below("encoder.model.", state_dict))
        elif self.trains_encoder:
            trained = {name for name, parameter in self.encoder.model.named_parameters() if parameter.requires_grad}
            weights = _below("encoder.model.", state_dict)
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(
                {name: weights[name].contiguous() for name in sorted(trained)},
                Path(folder) / VISION_WEIGHTS,
                metadata={"format": "pt", "base_model_name_or_path": self.encoder.model.name_or_path},
            )

    def load_trained(self, folder: str | Path) -> None:
        """Read back what `save_trained` wrote for a model of the same kind."""
        if self.trains_projector:
            self.projector.load_state_dict(load_file(Path(folder) / PROJECTOR_FOLDER / PROJECTOR_WEIGHTS))
        if self.trains_encoder and isinstance(self.encoder.model, PeftModel):
            set_peft_model_state_dict(self.encoder.model, load_file(Path(folder) / ADAPTER_WEIGHTS))
        elif self.trains_encoder:
            self.encoder.model.load_state_dict(load_file(Path(folder) / VISION_WEIGHTS), strict=False)


def _below(prefix: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def check_projector(folder: str | Path, embedding_width: int, condition_width: int) -> Path:
    """The folder of the projector's files, if it fits between this encoder and this denoiser.

    Raises:
        FileNotFoundError: there is no projector.
        ValueError: it was trained for other widths; both are named.
    """
    place = find_projector(folder)
    if place is None:
        raise FileNotFoundError(
            f"{folder} holds no projector: neither {PROJECTOR_WEIGHTS} nor {PROJECTOR_FOLDER}/{PROJECTOR_WEIGHTS}. "
            "--stage 2 needs stage 1's projector: run --stage 1 into the same --output_dir first, or give --projector."
        )
    config = json.loads((place / "config.json").read_text())
    if (config["embedding_width"], config["condition_width"]) != (embedding_width, condition_width):
        raise ValueError(
            f"the projector in {folder} maps embeddings of width {config['embedding_width']} to conditions of width "
            f"{config['condition_width']}; this encoder's embeddings have width {embedding_width} and this denoiser's "
            f"conditions {condition_width}. Give the --projector that was trained for them, or run --stage 1."
        )
    return place


def find_projector(folder: str | Path) -> Path | None:
    """The folder of the projector's own files: `folder` itself, its `projector/`, or None if neither has weights."""
    candidates = (Path(folder), Path(folder) / PROJECTOR_FOLDER)
    return next((place for place in candidates if (place / PROJECTOR_WEIGHTS).is_file()), None)
