"""The two inputs of an encoder: images through its own image processor, texts through its text tower."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel, PreTrainedModel, SiglipModel

from dcr_hf.errors import as_user_error
from dcr_hf.models.families import read_image_processor

TEXT_BATCH = 256


class ImageProcessor:
    """The checkpoint's own image processor, in two halves: resize and crop in the workers (PIL, uint8: a quarter of
    the memory traffic), rescale and normalise on the device."""

    def __init__(self, who: str, path: str, side: int, original: bool = False):
        """
        Args:
            who: whose it is, for messages.
            side: what the vision tower takes, in pixels; another size of the processor is a UserError.
            original: cut the centre out where OpenAI's transform does: torchvision rounds half of what is left over,
                to even; transformers cuts its fraction off.
        """
        # Always PIL: with torchvision the default backend differs in the last digits.
        self.processor = cast(Any, read_image_processor(who, path, side, backend="pil"))
        self.image_size = side
        self.original = original and bool(getattr(self.processor, "do_center_crop", False))

    def to_uint8(self, image: Image.Image) -> Tensor:
        """RGB image -> (3, S, S), uint8."""
        done = {"do_resize": False, "do_center_crop": False} if self.original else {}
        image = self._centre(image) if self.original else image
        pixels = self.processor(images=image, return_tensors="pt", do_rescale=False, do_normalize=False, **done)
        return pixels["pixel_values"][0]

    def _centre(self, image: Image.Image) -> Image.Image:
        """Resized by its shorter side, then cropped to S x S as torchvision does."""
        shorter = self.processor.size["shortest_edge"]
        width, height = (shorter * side // min(image.size) for side in image.size)
        image = image.resize((width, height), self.processor.resample)
        left, top = (round((side - self.image_size) / 2) for side in image.size)
        return image.crop((left, top, left + self.image_size, top + self.image_size))

    def to_pixel_values(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S), uint8 -> float32 in the encoder's own pixel space."""
        values = pixels.float() * (self.processor.rescale_factor if self.processor.do_rescale else 1.0)
        if not self.processor.do_normalize:
            return values
        mean, std = (
            torch.tensor(numbers, device=pixels.device).view(1, 3, 1, 1)
            for numbers in (self.processor.image_mean, self.processor.image_std)
        )
        return (values - mean) / std


class TextTower:
    """A dual encoder's texts -> joint-space embeddings, and its logit scale."""

    def __init__(self, model: PreTrainedModel, tokenizer_path: str):
        self.model = cast(CLIPModel | SiglipModel, model)
        with as_user_error(f"tokenizer of {tokenizer_path}", OSError, ValueError):
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
        self.length = model.config.text_config.max_position_embeddings  # CLIP 77, SigLIP 64

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """(N, D) of unit length, float32. Padded to the model's full length, as both families are trained; longer
        texts are truncated."""
        rows = []
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = self.tokenizer(
                texts[start : start + TEXT_BATCH],
                padding="max_length",
                max_length=self.length,
                truncation=True,
                return_tensors="pt",
            )
            # No attention mask: CLIP's tower is causal and reads the end token, SigLIP was trained without one.
            output = self.model.get_text_features(input_ids=tokens["input_ids"].to(self.model.device))
            rows.append(normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(rows).numpy()

    @property
    def logit_scale(self) -> float:
        return self.model.logit_scale.detach().float().exp().item()
