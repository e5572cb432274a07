"""ConditionModel = encoder + projector: the only module that is trained."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import PROJECTOR_FOLDER, PROJECTOR_WEIGHTS, Projector
from dcr_hf.models.results import ADAPTER_WEIGHTS, VISION_WEIGHTS, base_of


def kept_count(patches: int, ratio: float) -> int:
    """M, the number of patches kept: this share of N, rounded, at least one."""
    return max(1, round(ratio * patches))


def choose_patches(images: int, patches: int, ratio: float, at_random: bool, device: torch.device) -> Tensor:
    """Indices (B, M) of `kept_count` different patches of each image.

    Args:
        images, patches: B and N.
        at_random: drawn for every image at every call; else always the same, evenly spaced.
    """
    count = kept_count(patches, ratio)
    if at_random:
        # The largest of random numbers: a draw without replacement, without a wait of the host.
        return torch.rand(images, patches, device=device).topk(count).indices
    evenly = (2 * torch.arange(count, device=device) + 1) * patches // (2 * count)  # the middles of M equal parts
    return evenly.expand(images, -1)


class Encoded(NamedTuple):
    """The trained model's outputs for B images."""

    embeddings: Tensor
    """z = f(x), (B, D)"""
    conditions: Tensor
    """c = h(z), (B, C)"""
    tokens: Tensor | None = None
    """of M patches of each image, (B, M, C); None if the condition has none"""
    originals: Tensor | None = None
    """the original encoder's z of the first images, (K, D), without gradient"""


class ConditionModel(nn.Module):
    """Images in [0, 1] -> embeddings z = f(x) and conditions c = h(z). Trains the parameters that require a gradient.

    Args:
        patch_keep_ratio: share of the patches whose tokens join the condition, drawn for every image at every call
            (always the same in eval mode). For a projector with `patch_width`; None for one without.

    Raises:
        ValueError: only one of patch_keep_ratio and patch_width is given.
    """

    def __init__(self, encoder: ImageEncoder, projector: Projector, patch_keep_ratio: float | None = None):
        super().__init__()
        if (projector.patch_width is None) != (patch_keep_ratio is None):
            raise ValueError(
                f"patch_keep_ratio is {patch_keep_ratio} and the projector's patch_width {projector.patch_width}: "
                "give both, for patch tokens in the condition, or neither."
            )
        self.encoder = encoder
        self.projector = projector
        self.patch_keep_ratio = patch_keep_ratio
        self._no_split_modules = [encoder.family.layer]  # FSDP's unit, under the name that accelerate looks for

    def forward(self, images: Tensor, originals: int = 0) -> Encoded:
        """(B, 3, H, W) in [0, 1] -> z (B, D), c (B, C) and, with patches, their tokens (B, M, C).

        Args:
            originals: also return the frozen encoder's embeddings of the first N images. In the same call, since
                sharded weights are gathered only during it.
        """
        original = self.encoder.original(images[:originals]) if originals else None
        # What is small beside the denoiser is computed in full precision, whatever autocast: its errors are c's.
        with nullcontext() if self.trains_encoder else _full_precision(self.encoder):
            embeddings, patches = self.encoder.features(images)
        ratio, dtype = self.patch_keep_ratio, next(self.projector.parameters()).dtype
        with _full_precision(self.projector):
            tokens = None if ratio is None else self.projector.tokens(self._kept(patches, ratio).to(dtype))
            return Encoded(embeddings, self.projector(embeddings.to(dtype)), tokens, original)

    def _kept(self, patches: Tensor, ratio: float) -> Tensor:
        """(B, N, W) -> (B, M, W)"""
        indices = choose_patches(patches.shape[0], patches.shape[1], ratio, self.training, patches.device)
        return patches.take_along_dim(indices[:, :, None], dim=1)

    @property
    def kept_patches(self) -> int:
        """M, the number of an image's patches with a token in its condition; 0 without patches."""
        ratio = self.patch_keep_ratio
        return 0 if ratio is None else kept_count(self.encoder.patch_count, ratio)

    @property
    def trains_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    @property
    def trains_projector(self) -> bool:
        return any(parameter.requires_grad for parameter in self.projector.parameters())

    def train(self, mode: bool = True) -> "ConditionModel":
        """Set the mode; a frozen encoder stays in eval mode, so that stage 1 sees it as it will be used."""
        super().train(mode)
        self.encoder.train(mode and self.trains_encoder)
        return self

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """`--gradient_checkpointing`: recompute the encoder's layers in the backward pass."""
        # The tower's alone: on a complete SigLIP, transformers looks for the text side, which was dropped.
        tower: Any = self.encoder.model.vision_model
        tower.gradient_checkpointing_enable(**kwargs)

    def save_trained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the trained weights alone: `projector/`; peft's adapter files, or the vision side's weights.

        Args:
            folder: created if missing.
            state_dict: this module's weights, if they were gathered from several devices.
        """
        state_dict = self.state_dict() if state_dict is None else state_dict
        if self.trains_projector:
            with torch.device("meta"):  # not initialised: that would change the RNG state
                own = self.projector
                gathered = Projector(own.embedding_width, own.condition_width, own.patch_width)
            gathered.load_state_dict(_below("projector.", state_dict), assign=True)
            gathered.save_pretrained(Path(folder) / PROJECTOR_FOLDER)
        if self.trains_encoder and isinstance(self.encoder.model, PeftModel):
            self.encoder.model.save_pretrained(str(folder), state_dict=_below("encoder.model.", state_dict))
        elif self.trains_encoder:
            trained = {name for name, parameter in self.encoder.model.named_parameters() if parameter.requires_grad}
            weights = _below("encoder.model.", state_dict)
            Path(folder).mkdir(parents=True, exist_ok=True)
            base, revision = base_of(str(self.encoder.model.name_or_path))
            names = {"base_model_name_or_path": base} | ({"revision": revision} if revision else {})
            save_file(
                {name: weights[name].contiguous() for name in sorted(trained)},
                Path(folder) / VISION_WEIGHTS,
                metadata={"format": "pt", **names},
            )

    def load_trained(self, folder: str | Path) -> None:
        """Load what `save_trained` wrote for a model of the same kind."""
        if self.trains_projector:
            self.projector.load_state_dict(load_file(Path(folder) / PROJECTOR_FOLDER / PROJECTOR_WEIGHTS))
        if self.trains_encoder and isinstance(self.encoder.model, PeftModel):
            set_peft_model_state_dict(self.encoder.model, load_file(Path(folder) / ADAPTER_WEIGHTS))
        elif self.trains_encoder:
            self.encoder.model.load_state_dict(load_file(Path(folder) / VISION_WEIGHTS), strict=False)


def _full_precision(module: nn.Module) -> AbstractContextManager:
    """Without autocast, if the weights are in float32: DeepSpeed and FSDP may have converted them."""
    weight = next(module.parameters())
    return torch.autocast(weight.device.type, enabled=False) if weight.dtype == torch.float32 else nullcontext()


def _below(prefix: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
