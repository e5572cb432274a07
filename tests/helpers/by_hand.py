"""Embeddings set by hand, in place of an encoder."""

from collections.abc import Callable, Mapping

import numpy as np


class ByHand:
    """Images by index, texts by what they say; a text that is not listed is an error."""

    def __init__(self, images: np.ndarray, texts: Mapping[str, np.ndarray] | None = None, logit_scale: float = 100.0):
        self._images, self._texts, self.logit_scale = np.asarray(images, np.float32), texts or {}, logit_scale

    def images(self, kind: str) -> np.ndarray:
        return self._images

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([self._texts[text] for text in texts]).astype(np.float32)

    def remember(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return compute()

    remember_texts = remember


def one_hot(index: int, width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[index]


class Names:
    """Images of which only the number is asked for."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image-{index}"

    def read(self, index: int) -> bytes:
        raise AssertionError("these embeddings are set by hand: nothing reads images")
