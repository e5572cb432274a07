"""How far a run, or one of its checkpoints, moved the encoder: on the images that the run kept for this."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from dcr_hf.errors import NotFoundError
from dcr_hf.evaluation.embedding.inputs import ImageProcessor
from dcr_hf.export import RunFacts
from dcr_hf.hub import local_folder
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.results import FIXED_IMAGES, has_encoder


@dataclass(frozen=True)
class TrainedRun:
    """A run that trained an encoder.

    Attributes:
        stage: the folder of the stage that trained it.
        encoder: the encoder that it started from, pinned to the run's revision.
        images: the fixed images (K, 3, S, S), uint8.
    """

    stage: Path
    encoder: str
    images: Tensor
    facts: RunFacts

    @classmethod
    def read(cls, run: Path) -> "TrainedRun":
        """Read a run's folder.

        Raises:
            NotFoundError: no stage that trained the encoder, or not its fixed images.
        """
        facts = RunFacts.read(run)
        stage = run / facts.encoder_stage
        if not has_encoder(stage):
            raise NotFoundError(f"--run {run}: {stage} holds no trained encoder: its training has not finished.")
        file = stage / FIXED_IMAGES
        if not file.is_file():
            raise NotFoundError(
                f"--run {run} has no {file}, with the images on which distances are measured. Runs write it since "
                "they log `moved`: train it again."
            )
        facts.pin_encoder()
        return cls(stage, facts.encoder, load_file(file)["images"], facts)

    def load(self, result: Path | None = None) -> PreTrainedModel:
        """The dual encoder as it was before training, or with the weights of a checkpoint of the stage."""
        return load_dual_encoder(self.encoder, result)

    def distances_from(self, base: PreTrainedModel) -> Callable[[PreTrainedModel], float]:
        """1 - cosine of a model's embeddings to those of `base` as it is now, the mean over the fixed images."""
        name = f"encoder {self.encoder}"
        processor = ImageProcessor(name, str(local_folder(self.encoder)), self.images.shape[-1])
        pixels = processor.to_pixel_values(self.images)

        @torch.inference_mode()
        def embed(model: Any) -> Tensor:
            return model.get_image_features(pixel_values=pixels).pooler_output.cpu().double()

        original = embed(base)
        return lambda model: (1 - F.cosine_similarity(embed(model), original, dim=-1)).mean().item()
