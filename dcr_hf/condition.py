"""The projector, and ConditionModel = encoder + projector: the only module that is trained."""

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class Projector(nn.Module, PyTorchModelHubMixin, library_name="dcr_hf", tags=["dcr"]):
    """h: an image embedding z (..., D) -> a condition c (..., C) for the denoiser's cross-attention."""

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
