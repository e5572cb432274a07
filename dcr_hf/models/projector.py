"""The projector h: embeddings -> conditions; its files and their checks."""

import contextlib
import io
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.models.reading import read_json

PROJECTOR_FOLDER = "projector"
PROJECTOR_WEIGHTS = "model.safetensors"


class Projector(nn.Module, PyTorchModelHubMixin, library_name="dcr_hf", tags=["dcr"]):
    """h: image embeddings z (..., D) -> conditions c (..., C) for the denoiser's cross-attention.

    Attributes:
        patch_width: W, where a second network of the same form maps patches to tokens; None without it.
    """

    def __init__(self, embedding_width: int, condition_width: int, patch_width: int | None = None):
        super().__init__()
        self.embedding_width = embedding_width
        self.condition_width = condition_width
        self.patch_width = patch_width
        self.layers = _perceptron(embedding_width, condition_width)
        self.patch_layers = None if patch_width is None else _perceptron(patch_width, condition_width)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)

    def tokens(self, patches: Tensor) -> Tensor:
        """Hidden states of patches (..., W) -> tokens (..., C), appended to the prompt's; needs `patch_width`."""
        assert self.patch_layers is not None
        return self.patch_layers(patches)

    @classmethod
    def _from_pretrained(cls, **options: Any) -> "Projector":
        """The loaded projector, without the line that huggingface_hub prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            return super()._from_pretrained(**options)


def _perceptron(width: int, condition_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, condition_width),
        nn.GELU(),
        nn.Linear(condition_width, condition_width),
    )


def check_projector(
    folder: str | Path, embedding_width: int, condition_width: int, patch_width: int | None = None
) -> Path:
    """The folder of the projector's files, if it fits between this encoder and this denoiser.

    Args:
        patch_width: the encoder's, if the condition is to have patch tokens; else None.

    Raises:
        NotFoundError: there is no projector.
        UserError: it was trained for other widths (the message names both), or for the other --condition.
    """
    found_in = find_projector(folder)
    if found_in is None:
        raise NotFoundError(
            f"{folder} holds no projector: neither {PROJECTOR_WEIGHTS} nor {PROJECTOR_FOLDER}/{PROJECTOR_WEIGHTS}. "
            "--stage 2 needs stage 1's projector: run --stage 1 into the same --output_dir first, or give --projector."
        )
    config = read_json(f"the projector in {folder}", found_in / "config.json")
    found_embedding, found_condition = config.get("embedding_width"), config.get("condition_width")
    if (found_embedding, found_condition) != (embedding_width, condition_width):
        raise UserError(
            f"the projector in {folder} maps embeddings of width {found_embedding} to conditions of width "
            f"{found_condition}; this encoder's embeddings have width {embedding_width} and this denoiser's "
            f"conditions {condition_width}. Give the --projector that was trained for them, or run --stage 1."
        )
    found = config.get("patch_width")  # absent in older ones
    if (found is None) != (patch_width is None):
        trained, wanted = ("cls" if width is None else "patches" for width in (found, patch_width))
        raise UserError(
            f"the projector in {folder} was trained with --condition {trained}; --condition {wanted} needs "
            f"another. Give a projector trained with it, train with --condition {trained}, or start in another "
            "--output_dir."
        )
    if found != patch_width:
        raise UserError(
            f"the projector in {folder} maps patches of width {found}; this encoder's patches have width "
            f"{patch_width}. Give the --projector that was trained for them, or run --stage 1."
        )
    return found_in


def find_projector(folder: str | Path) -> Path | None:
    """The folder of the projector's own files: `folder` itself, its `projector/`, or None if neither has weights."""
    candidates = (Path(folder), Path(folder) / PROJECTOR_FOLDER)
    return next((path for path in candidates if (path / PROJECTOR_WEIGHTS).is_file()), None)
