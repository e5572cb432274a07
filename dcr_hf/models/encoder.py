"""The vision side of a CLIP-family model: images -> z, and LoRA on exactly that side."""

import copy
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from dcr_hf.hub import local_folder
from dcr_hf.models.families import Family, embedding_width, patch_width, read_encoder_config, read_image_processor
from dcr_hf.models.loading import load_complete
from dcr_hf.models.results import base_of

LoraBias = Literal["lora_only", "none", "all"]


class Features(NamedTuple):
    """The vision side's outputs for B images, from one forward pass."""

    embeddings: Tensor
    """z = f(x), (B, D), not normalised to unit length"""
    patches: Tensor
    """the last hidden states of the N patches, (B, N, W)"""


class ImageEncoder(nn.Module):
    """The vision side of a CLIP-family model: images in [0, 1] -> z = f(x).

    The text side is dropped after loading: nothing here uses it. Module names stay, so that adapters trained here load
    on the complete dual encoder.

    Attributes:
        model: the dual encoder without its text side; a `PeftModel` around it once LoRA is added.
        image_size: side of the square input, in pixels.
        embedding_width: D, the width of z.
        patch_width: W, the width of the patches' hidden states.
        patch_count: N, the number of an image's patches.
        mean, std: (1, 3, 1, 1), the checkpoint's own pixel statistics.
        frozen_copy: the model before training, if `keep_original` was called; else None.
    """

    model: PreTrainedModel | PeftModel
    frozen_copy: PreTrainedModel | PeftModel | None
    mean: Tensor
    std: Tensor

    def __init__(self, model: PreTrainedModel, family: Family, mean: Iterable[float], std: Iterable[float]):
        super().__init__()
        for name in family.non_vision_modules:
            delattr(model, name)
        self.model = model.requires_grad_(False)
        self.frozen_copy = None
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
        """Load a CLIP or SigLIP folder or hub id in float32, frozen.

        Raises:
            UserError: not a CLIP or SigLIP, or an image processor of another size than the tower.
        """
        config, family = read_encoder_config(path_or_id)
        who = f"encoder {path_or_id!r}"
        folder = local_folder(path_or_id, what="encoder")
        processor = read_image_processor(who, folder, config.vision_config.image_size)
        model = load_complete(family.dual_class, "encoder", path_or_id, torch.float32)
        return cls(model, family, processor.image_mean, processor.image_std)

    @classmethod
    def without_weights(cls, path_or_id: str) -> "ImageEncoder":
        """As `from_pretrained`, on the meta device: its modules and their sizes."""
        config, family = read_encoder_config(path_or_id)
        with torch.device("meta"):
            return cls(family.dual_class(config), family, mean=[0.0] * 3, std=[1.0] * 3)

    def set_statistics(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Other pixel statistics than the checkpoint's own, 3 numbers each."""
        self.mean.copy_(torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(list(std)).view(1, 3, 1, 1))

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

    def _features(self, model: Any, images: Tensor) -> Features:
        output = model.get_image_features(pixel_values=self.normalize(images))
        return Features(output.pooler_output, output.last_hidden_state[:, self.family.class_tokens :])

    @torch.no_grad()
    def original(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> z (B, D) of the encoder as it was before training, in eval mode.

        With adapters alone: the base without them. Where anything else is trained, such as biases, `keep_original`
        must have been called before.
        """
        if self.frozen_copy is not None:
            return self._features(self.frozen_copy.eval(), images).embeddings
        assert isinstance(self.model, PeftModel) and not self.trains_biases
        training = self.model.training
        with self.model.eval().disable_adapter():
            embeddings = self._features(self.model, images).embeddings
        self.model.train(training)
        return embeddings

    @property
    def trains_biases(self) -> bool:
        """True if the model without its adapters is not what it was before training."""
        return any(p.requires_grad and "lora_" not in name for name, p in self.model.named_parameters())

    def keep_original(self) -> None:
        """Keep a frozen copy of the vision side as it is now, for `original`."""
        self.frozen_copy = copy.deepcopy(self.model)

    def unfreeze(self) -> None:
        """Train the weights of the complete vision side, without adapters."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(self.family.export_prefixes))

    def add_lora(self, rank: int, alpha: float, dropout: float, bias: LoraBias = "none") -> None:
        """Wrap every linear layer of the vision side in a trainable LoRA adapter; the rest stays frozen.

        Args:
            bias: which biases are trained too: of the wrapped layers (`lora_only`, as in the released code), or `all`.
        """
        bias_only = self.family.bias_only_targets if bias == "lora_only" else None
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes any number
            lora_dropout=dropout,
            target_modules="|".join(filter(None, (self.family.lora_targets, bias_only))),
            bias=bias,
        )
        repository, revision = base_of(str(self.model.name_or_path))
        self.model.name_or_path = repository
        self.model = get_peft_model(self.model, config)
        self.model.peft_config["default"].revision = revision
        for name, parameter in self.model.named_parameters():
            if bias_only and "lora_" in name and re.search(rf"(^|\.)({bias_only})\.lora_", name):
                parameter.requires_grad_(False)
