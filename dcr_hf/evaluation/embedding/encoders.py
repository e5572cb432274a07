"""Encoders to measure: folders, hub ids, stage-2 checkpoints, vision towers alone. Weights load on first use."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, CLIPModel, CLIPVisionModel, PreTrainedModel, SiglipModel, SiglipVisionModel

from dcr_hf.errors import NotFoundError, UserError, as_user_error
from dcr_hf.evaluation.embedding.identity import hash_files, weights_revision
from dcr_hf.evaluation.embedding.inputs import ImageProcessor, TextTower
from dcr_hf.hub import local_folder
from dcr_hf.models.families import FAMILIES
from dcr_hf.models.loading import load_complete, load_dual_encoder
from dcr_hf.models.results import has_encoder, trained_base

VISION_TOWERS: dict[str, type[CLIPVisionModel] | type[SiglipVisionModel]] = {
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
_KINDS = {"clip": ("projected", "pooled", "mean_patch"), "clip_vision_model": ("pooled", "mean_patch")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


Preprocess = Literal["processor", "original"]


class PretrainedEncoder:
    """A checkpoint by path or hub id; `name` is its name in the results.

    Attributes:
        kinds: its image features: `projected` (the joint space), `pooled` (the pooled output before the
            projection; SigLIP has no projection, so its pooled output is the joint space) and `mean_patch` (the mean
            over the patches of the last hidden state).
        has_text: whether the checkpoint has a text tower and a tokenizer.

    Raises:
        NotFoundError, UserError: on creation, before weights are read: the checkpoint cannot be measured.
    """

    def __init__(
        self,
        name: str,
        path: str,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        preprocess: Preprocess = "processor",
    ):
        self.name, self.path, self.dtype, self.device = name, path, dtype, device
        self.trained, self.base = _trained_and_base(path)
        folder = local_folder(self.base, what=f"encoder {name}:")
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"encoder {name}: {self.base} has neither config.json nor adapter_config.json: it is neither a "
                "folder of save_pretrained nor a stage-2 checkpoint. OpenAI-format files: "
                "python -m dcr_hf.convert FILE.pt OUT"
            )
        with as_user_error(f"encoder {name}", OSError, ValueError):
            config = AutoConfig.from_pretrained(folder)
        if config.model_type not in (*FAMILIES, *VISION_TOWERS):
            raise UserError(
                f"encoder {name}: {self.base} is a {config.model_type!r} model; supported are "
                f"{', '.join((*FAMILIES, *VISION_TOWERS))}."
            )
        self.model_type = config.model_type
        self.has_text = config.model_type in FAMILIES
        self.is_clip = config.model_type.startswith("clip")
        self.kinds: tuple[str, ...] = _KINDS.get(self.model_type, ("projected", "mean_patch"))
        side = (config.vision_config if self.has_text else config).image_size
        self.processor = ImageProcessor(f"encoder {name}: {self.base}", str(folder), side, preprocess == "original")

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """Hashes of the weights, stage 2's result and the processor; the dtype: all that its embeddings depend on."""
        return {
            "path": self.path,
            "base": self.base if self.trained else None,
            "weights": weights_revision(self.base),
            "trained": hash_files(sorted(self.trained.glob("*.safetensors"))) if self.trained else None,
            "processor": hashlib.sha256(self.processor.processor.to_json_string().encode()).hexdigest()[:16],
            **({"preprocess": "original"} if self.processor.original else {}),
            "dtype": self.dtype,
        }

    @cached_property
    def model(self) -> PreTrainedModel:
        if self.has_text:
            model = load_dual_encoder(self.base, self.trained)
        else:
            kind = VISION_TOWERS[self.model_type]
            model = load_complete(kind, f"encoder {self.name}:", self.base, torch.float32)
        nn.Module.to(model, device=self.device, dtype=DTYPES[self.dtype])
        return model.eval()

    @cached_property
    def text(self) -> TextTower:
        """Raises ValueError where there is no text tower: check `has_text` first."""
        if not self.has_text:
            raise ValueError(f"encoder {self.name} ({self.path}) has no text tower.")
        return TextTower(self.model, str(local_folder(self.base)))

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.processor.to_uint8(image)

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> dict[str, np.ndarray]:
        """(B, 3, S, S), uint8 -> every kind of feature, (B, width) float32, from one forward pass."""
        values = self.processor.to_pixel_values(pixels.to(self.device)).to(DTYPES[self.dtype])
        model = self.model
        vision = model.vision_model if isinstance(model, CLIPModel | SiglipModel) else model
        output = vision(pixel_values=values)
        patches = output.last_hidden_state[:, 1:] if self.is_clip else output.last_hidden_state  # CLIP: class token
        features = {"mean_patch": patches.mean(dim=1)}
        if self.is_clip:
            features["pooled"] = output.pooler_output
        else:
            features["projected"] = output.pooler_output
        if isinstance(model, CLIPModel):
            features["projected"] = model.visual_projection(output.pooler_output)
        return {kind: values.float().cpu().numpy() for kind, values in features.items()}

    def kind(self, wanted: str) -> str:
        """The stored feature for `wanted`; `auto` is the joint space where the checkpoint has one.

        Raises:
            UserError: the joint space of a CLIP vision tower alone, which has none.
        """
        if wanted == "auto":
            return self.kinds[0]
        if wanted == "pooled" and not self.is_clip:
            return "projected"
        if wanted not in self.kinds:
            raise UserError(f"encoder {self.name} has no {wanted!r} features, only {', '.join(self.kinds)}.")
        return wanted

    def release(self) -> None:
        """Free the loaded weights."""
        self.__dict__.pop("text", None)
        self.__dict__.pop("model", None)


def _trained_and_base(path: str) -> tuple[Path | None, str]:
    folder = Path(path).expanduser()
    if folder.is_file():
        raise UserError(f"encoder {path} is a file; a folder or id is needed: python -m dcr_hf.convert {path} OUT")
    return (folder, trained_base(folder)) if has_encoder(folder) else (None, path)
