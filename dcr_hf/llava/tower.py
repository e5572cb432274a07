"""A CLIP or SigLIP as LLaVA's vision tower: its geometry, its image processor, its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    CLIPVisionModel,
    LlavaImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from dcr_hf.errors import NotFoundError, UserError
from dcr_hf.hub import check_weights, local_folder
from dcr_hf.models.families import ImageProcessor, read_image_processor
from dcr_hf.models.loading import load_complete, quietly
from dcr_hf.models.reading import read_config


@dataclass(frozen=True)
class Kind:
    """What LLaVA must know of a family of towers."""

    vision_class: type[PreTrainedModel]
    additional_tokens: int
    """Tokens beside those of the patches: CLIP's class token."""
    strategy: Literal["default", "full"]
    """`vision_feature_select_strategy`: `default` leaves out the first token, `full` takes all."""


KINDS = {
    "clip_vision_model": Kind(CLIPVisionModel, additional_tokens=1, strategy="default"),
    "siglip_vision_model": Kind(SiglipVisionModel, additional_tokens=0, strategy="full"),
}


@dataclass(frozen=True)
class Tower:
    """A vision tower, without its weights.

    Attributes:
        path: folder or id.
        config: of the vision side.
        image_processor: its own; PIL, on every machine.
    """

    path: str
    config: PreTrainedConfig
    image_processor: ImageProcessor

    @property
    def kind(self) -> Kind:
        return KINDS[self.config.model_type]

    @property
    def image_tokens(self) -> int:
        """Tokens that an image has in the language model: its patches."""
        return (self.config.image_size // self.config.patch_size) ** 2

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names as inside the vision model, without any prefix.

        Raises:
            UserError: some are missing; transformers would leave them random.
        """
        with quietly():  # of a dual encoder, the text side is left out
            model = load_complete(self.kind.vision_class, "encoder", self.path, dtype)
        return {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}

    def padding_processor(self) -> LlavaImageProcessorPil:
        """LLaVA-1.5's way with an image: padded to a square in the mean colour, then resized; statistics and size are
        the tower's own."""
        side = self.config.image_size
        return LlavaImageProcessorPil(
            do_pad=True,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(self.image_processor.image_mean),
            image_std=list(self.image_processor.image_std),
            resample=self.image_processor.resample,
        )


def read_tower(path_or_id: str) -> Tower:
    """The tower of a dual encoder or of a vision model, folder or id. Reads no weights.

    Raises:
        NotFoundError: no folder, no configuration, no image processor.
        UserError: neither CLIP nor SigLIP; an image processor of another size than the tower.
    """
    folder = local_folder(path_or_id, what="encoder")
    who = f"encoder {path_or_id!r}"
    config = read_config(
        who,
        folder,
        "it is no model folder. Give what a run exported, OUT/NAME-dcr or OUT/NAME-dcr-vision; python -m "
        "dcr_hf.export makes them of a run's checkpoint.",
    )
    if config.model_type in ("clip", "siglip"):
        config = config.vision_config
    if config.model_type not in KINDS:
        raise UserError(
            f"{who} is a {config.model_type!r} model; LLaVA's tower here is a CLIP or a SigLIP, the "
            "dual encoder or its vision tower."
        )
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise NotFoundError(f"{who} lacks an image processor: no preprocessor_config.json.")
    image_processor = read_image_processor(who, folder, config.image_size, backend="pil")
    check_weights(path_or_id, what="encoder")
    local = Path(path_or_id).expanduser()
    return Tower(str(local) if local.is_dir() else path_or_id, config, image_processor)
