"""transformers' LLaVA, to be trained: what each stage trains, and its weights alone in a file."""

from pathlib import Path
from typing import cast

import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedConfig

from dcr_hf.errors import UserError
from dcr_hf.export import ExportError
from dcr_hf.llava.weights import Read, canonical, opened, weight_files
from dcr_hf.models.loading import load_complete

# Every linear layer of the language model; not its head, not the tower, not the projector.
_LORA_TARGETS = r".*language_model\.layers\.\d+\.\w+\.\w+_proj"
_INSIDE = "llava."
_LORA_A, _LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


class TrainedLlava(nn.Module):
    """A LLaVA in which tower and projector take part in every step.

    A batch of text alone would leave the projector without a gradient, and one process without what the others wait
    for: DDP needs a gradient of every trained weight, ZeRO-3 the same modules on all. LLaVA's own code does likewise.

    Around the model and no kind of it: transformers reads older names of weights for its own classes only.
    """

    def __init__(self, llava: LlavaForConditionalGeneration):
        super().__init__()
        self.llava = llava
        self.config = llava.config  # where DeepSpeed's integration looks

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype) -> "TrainedLlava":
        """Read a folder.

        Raises:
            UserError: weights are missing; transformers would leave them random.
        """
        return cls(load_complete(LlavaForConditionalGeneration, "LLaVA", folder, dtype))

    @property
    def projector(self) -> nn.Module:
        return self.llava.model.multi_modal_projector

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None, **inputs: Tensor):
        """As transformers', with a blank image of which nothing is used where there is none. ZeRO-3 wants all modules
        in the same order, with an image and without."""
        words = self.llava.get_input_embeddings()(input_ids)  # (B, T, width)
        features = self._features(pixel_values).to(words.dtype)  # (all images' tokens, width)
        if pixel_values is None:
            words = words + 0.0 * features.sum()
        else:
            image_mask = self.llava.model.get_placeholder_mask(input_ids, words, features[None])
            words = words.masked_scatter(image_mask, features)
        return self.llava(inputs_embeds=words, use_cache=False, **inputs)

    def _features(self, pixel_values: Tensor | None) -> Tensor:
        vision, tower = cast(PreTrainedConfig, self.config.vision_config), self.llava.model.vision_tower
        if pixel_values is None:
            pixel_values = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
        pixel_values = pixel_values.to(tower.device, tower.dtype)
        return torch.cat(tuple(self.llava.get_image_features(pixel_values=pixel_values).pooler_output))

    def activation_checkpointing_enable(self, **kwargs) -> None:
        self.llava.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """What older versions of transformers call it."""
        self.llava.gradient_checkpointing_enable(**kwargs)

    def train_projector(self) -> None:
        """What align trains."""
        self.requires_grad_(False)
        self.projector.requires_grad_(True)

    def train_language(self, lora_rank: int, lora_alpha: float, lora_dropout: float) -> None:
        """What instruct trains: the projector, and the language model or, with a rank, adapters in it."""
        self.requires_grad_(False)
        if lora_rank:
            lora = LoraConfig(
                r=lora_rank, lora_alpha=cast(int, lora_alpha), lora_dropout=lora_dropout, target_modules=_LORA_TARGETS
            )
            inject_adapter_in_model(lora, self.llava)
        else:
            self.llava.model.language_model.requires_grad_(True)
            self.llava.lm_head.requires_grad_(True)
        self.projector.requires_grad_(True)

    def keep_trained_in_float32(self) -> None:
        """Weights that AdamW changes by a little each step; what is frozen stays as it was loaded."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    @property
    def trained_names(self) -> list[str]:
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def save_trained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what is trained and nothing else.

        Args:
            state_dict: this module's weights, where they had to be gathered from several devices.
        """
        state_dict = self.state_dict() if state_dict is None else state_dict
        save_torch_state_dict({name.removeprefix(_INSIDE): state_dict[name] for name in self.trained_names}, folder)

    def load_trained(self, folder: str | Path) -> None:
        """Read what `save_trained` wrote, of a model that trained the same or a part of it.

        Raises:
            UserError: it has weights that this model has not.
        """
        for file in weight_files(Path(folder)):
            with opened(file) as tensors:
                loaded = self.llava.load_state_dict({name: read() for name, read in tensors.items()}, strict=False)
            if loaded.unexpected_keys:
                raise UserError(f"{file} has weights that this model has not, such as {loaded.unexpected_keys[0]}.")


class TrainedWeights:
    """What one or more stages trained, laid over the weights they began from, tensor by tensor.

    Args:
        folders: of `save_trained`; a later one wins.
        lora_scale: alpha / rank of the adapters in them.
    """

    def __init__(self, folders: list[Path], lora_scale: float):
        self.lora_scale = lora_scale
        self._files: dict[str, tuple[Path, str]] = {}
        for folder in folders:
            for file in weight_files(folder):
                with opened(file) as tensors:
                    self._files |= {canonical(name): (file, name) for name in tensors}
        self._unused = set(self._files)

    def over(self, name: str, read: Read) -> dict[str, Tensor]:
        """A weight of the beginning as it is after training, in its own type."""
        begun = read()
        plain = canonical(name)
        if plain in self._files:
            return {name: self._read(plain).to(begun.dtype)}
        module = plain.removesuffix(".weight")
        if module + _LORA_A in self._files:
            down, up = self._read(module + _LORA_A).float(), self._read(module + _LORA_B).float()
            return {name: (begun.float() + self.lora_scale * up @ down).to(begun.dtype)}
        return {name: begun}

    def check_all_used(self) -> None:
        """Call after the last weight.

        Raises:
            ExportError: something that was trained belongs to nothing that it began from.
        """
        if self._unused:
            raise ExportError(f"{len(self._unused)} trained weights fit nothing, such as {min(self._unused)}.")

    def _read(self, plain: str) -> Tensor:
        self._unused.discard(plain)
        file, name = self._files[plain]
        with opened(file) as tensors:
            return tensors[name]()


def part_of(parameter_name: str) -> str:
    """'llava.model.language_model.layers.3...' -> 'language_model', for people."""
    return canonical(parameter_name.removeprefix(_INSIDE)).split(".")[0]
