"""A LLaVA-1.5 in transformers' format, by folder or hub id: checked before its weights are read, asked in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, LlavaForConditionalGeneration

from dcr_hf.errors import UserError
from dcr_hf.evaluation.embedding.encoders import DTYPES
from dcr_hf.evaluation.embedding.identity import hash_files, weights_revision
from dcr_hf.evaluation.readers.decode import decode_image
from dcr_hf.llava.folder import read_llava
from dcr_hf.mllm.inputs import TEMPLATE, TOKENIZED, Conversations
from dcr_hf.mllm.questions import QuestionSet
from dcr_hf.models.loading import load_complete

if TYPE_CHECKING:
    from transformers._typing import GenerativePreTrainedModel

SETTINGS = ("*.json", "*.jinja", "*.model")


class ModelError(UserError):
    """A folder that is not a LLaVA-1.5, weights that are incomplete, or memory that does not suffice."""


class Answerer(Protocol):
    """A model that answers questions."""

    name: str

    @property
    def identity(self) -> dict:
        """All that its replies depend on, JSON-able, with `path` and `dtype`."""

    def answer(self, data: QuestionSet, chosen: Sequence[int]) -> Iterator[tuple[list[int], list[str]]]:
        """Indices of questions, in the order of `chosen`, and the replies, batch by batch. The call itself reads the
        weights."""

    def release(self) -> None:
        """Free the weights."""


class Llava:
    """LlavaForConditionalGeneration under greedy decoding; `name` is its name in the results.

    Args:
        dtype: of the weights: float32, bfloat16 or float16.

    Raises:
        ModelError: on creation, before weights are read: the folder is not such a model.
    """

    def __init__(
        self,
        name: str,
        path: str,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        batch_size: int = 8,
        workers: int = 0,
        max_new_tokens: int = 64,
    ):
        self.name, self.path, self.dtype, self.device = name, path, dtype, device
        self.batch_size, self.workers, self.max_new_tokens = batch_size, workers, max_new_tokens
        try:
            folder = read_llava(path)
        except UserError as error:
            raise ModelError(f"model {name}: {error}") from error
        strategy, needed = folder.config.vision_feature_select_strategy, folder.tower.kind.strategy
        if strategy != needed:
            raise ModelError(
                f"model {name}: vision_feature_select_strategy in {path}'s config.json is {strategy!r}; its "
                f"{folder.tower.config.model_type} gives the image tokens with {needed!r}."
            )
        self.folder = folder.folder
        self.conversations = Conversations(folder)

    @cached_property
    def identity(self) -> dict:
        """Hashes of weights (on the hub, the commit), configuration, processor and tokenizer; dtype and prompt."""
        files = sorted({file for pattern in SETTINGS for file in self.folder.glob(pattern)})
        return {
            "path": self.path,
            "weights": weights_revision(self.path, "model"),
            "settings": hash_files(files),
            "dtype": self.dtype,
            "template": TEMPLATE,
            "tokenized": TOKENIZED,
            "max_new_tokens": self.max_new_tokens,
        }

    @cached_property
    def model(self) -> LlavaForConditionalGeneration:
        who, placed = f"model {self.name}:", {"": self.device}
        with self._enough_memory():
            model = load_complete(LlavaForConditionalGeneration, who, self.path, DTYPES[self.dtype], device_map=placed)
        return model.eval()

    def answer(self, data: QuestionSet, chosen: Sequence[int]) -> Iterator[tuple[list[int], list[str]]]:
        return self._replies(self.model, data, chosen)

    def _replies(self, model: LlavaForConditionalGeneration, data: QuestionSet, chosen: Sequence[int]):
        batches = DataLoader(
            _Asked(data),
            batch_size=self.batch_size,
            sampler=chosen,
            collate_fn=self._collate,
            num_workers=min(self.workers, -(-len(chosen) // self.batch_size)),
            pin_memory=torch.cuda.is_available(),
        )
        for indices, inputs in batches:
            yield indices, self._reply(model, inputs)

    def _collate(self, items: list) -> tuple[list[int], BatchFeature]:
        indices, images, prompts = zip(*items, strict=True)
        return list(indices), self.conversations(list(images), list(prompts))

    @torch.inference_mode()
    def _reply(self, model: LlavaForConditionalGeneration, inputs: BatchFeature) -> list[str]:
        tokenizer = self.conversations.tokenizer
        with self._enough_memory():
            tokens = cast("GenerativePreTrainedModel", model).generate(
                **inputs.to(self.device, dtype=DTYPES[self.dtype]),
                do_sample=False,
                num_beams=1,
                temperature=None,  # Vicuna's own generation settings sample
                top_p=None,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )  # (B, prompt + reply)
        replies = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        return [tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in replies]

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"model {self.name}: out of memory at --batch_size {self.batch_size}: {error} Replies so far are "
                "kept: run the same command with a smaller --batch_size, or --dtype float16 or bfloat16."
            ) from error

    def release(self) -> None:
        """Free the loaded weights."""
        self.__dict__.pop("model", None)
        torch.cuda.empty_cache()

    def __getstate__(self) -> dict:
        """The state for DataLoader workers, which need no weights."""
        return {name: value for name, value in self.__dict__.items() if name != "model"}


class _Asked(Dataset):
    """Question `index`: (index, decoded image, prompt)."""

    def __init__(self, data: QuestionSet):
        self.data = data

    def __getitem__(self, index: int):
        question, images = self.data.questions[index], self.data.images
        image = decode_image(images.read(question.image), images.name(question.image))
        return index, image, question.prompt

    def __len__(self) -> int:
        return len(self.data.questions)
