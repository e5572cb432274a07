"""Scores of the encoder during training, from memory: what `--eval_benchmarks` logs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dcr_hf.evaluation.benchmarks import BENCHMARKS, parse_benchmarks, read_sets
from dcr_hf.evaluation.embedding.embed import embed_in_memory
from dcr_hf.evaluation.embedding.inputs import ImageProcessor, TextTower
from dcr_hf.evaluation.readers.image_sets import ImageSet
from dcr_hf.hub import local_folder
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import read_encoder_config
from dcr_hf.models.float32 import full_float32
from dcr_hf.models.loading import load_dual_encoder


class TrainingEvaluation:
    """Runs benchmarks on an `ImageEncoder` during training.

    The text side never changes: what a benchmark asks of it is computed at the first evaluation and cached. Images are
    embedded outside autocast and without TF32, as recipes/evaluate.py does, so that both give the same numbers; by
    calling the encoder as a module, and in an equal number of batches on each process, so that the hooks of ZeRO and
    FSDP work.

    Creating it checks names and reads the data's tables, so that a wrong path ends a run before its first step.

    Args:
        base: the encoder's folder or id: text tower, tokenizer, image processor.
        benchmarks: as in recipes/evaluate.py, such as `mmvp_vlm` or `clustering:cifar10`.
        data_root: folder of local copies, or None for the hub.
        seeds: of k-means.

    Raises:
        ValueError, FileNotFoundError: a name, the encoder or the data.
    """

    def __init__(
        self,
        base: str,
        benchmarks: list[str],
        data_root: Path | None = None,
        batch_size: int = 64,
        workers: int = 2,
        seeds: tuple[int, ...] = (0,),
    ):
        side = read_encoder_config(base)[0].vision_config.image_size
        self.base, self.batch_size, self.workers, self.seeds = base, batch_size, workers, seeds
        self.processor = ImageProcessor(f"encoder {base}", str(local_folder(base)), side)
        self.work = read_sets(parse_benchmarks(benchmarks, data_root), data_root)
        self._texts = _Texts(base)

    @torch.no_grad()
    @full_float32()
    def __call__(self, encoder: ImageEncoder) -> dict[str, float]:
        """Score the encoder: every process calls this and gets the same numbers, fractions of 1.

        Named by `metric_name`. The modules' training modes and the global random state are left as they were.
        """
        modes = {module: module.training for module in encoder.modules()}
        encoder.eval()
        scores: dict[str, float] = {}
        try:
            sets = {data.title: data for data in self.work.values()}
            features = {name: self._embed(encoder, data) for name, data in sets.items()}
            if PartialState().is_main_process:
                device = next(encoder.parameters()).device
                for (benchmark, _), data in self.work.items():
                    of_images = features[data.title]
                    assert of_images is not None  # the first process gets them
                    embeddings = _MemoryEmbeddings(of_images, self._texts, device)
                    scores |= self._score(benchmark, data, embeddings)
        finally:
            self._texts.release()
            for module, training in modes.items():
                module.training = training
        (scores,) = broadcast_object_list([scores])
        return scores

    def _embed(self, encoder: ImageEncoder, data: ImageSet) -> np.ndarray | None:
        device = next(encoder.parameters()).device
        factor = self.processor.processor.rescale_factor

        def embed(pixels: Tensor) -> Tensor:
            return encoder(pixels.to(device).float() * factor)  # it normalises by itself

        return embed_in_memory(embed, self.processor.to_uint8, data, self.batch_size, self.workers)

    def _score(self, name: str, data: ImageSet, embeddings: "_MemoryEmbeddings") -> dict[str, float]:
        rows = BENCHMARKS[name].predict(embeddings, data, "projected", list(self.seeds))
        scored = BENCHMARKS[name].score(data.name, rows)
        return {
            metric_name(name, row["dataset"], row["metric"]): row["value"]
            for row in scored.scores
            if name != "mmvp_vlm" or row["dataset"] == "all"
        }


def metric_name(benchmark: str, dataset: str, metric: str) -> str:
    """`mmvp_vlm` for its pair accuracy; `clustering:cifar10/nmi` and alike for the rest."""
    return benchmark if benchmark == "mmvp_vlm" else f"{benchmark}:{dataset}/{metric}"


class _Texts:
    """The base's text side: loaded when a benchmark first asks, put away when it has answered, answers cached."""

    def __init__(self, base: str):
        self.base = base
        self.cached: dict[str, np.ndarray] = {}
        self._tower: TextTower | None = None

    def tower(self, device: torch.device) -> TextTower:
        if self._tower is None:
            model = load_dual_encoder(self.base)
            del model.vision_model  # the encoder in training has its own
            model.to(device)  # type: ignore[arg-type]  # transformers wraps it without its overloads
            self._tower = TextTower(model, self.base)
        return self._tower

    def release(self) -> None:
        self._tower = None


class _MemoryEmbeddings:
    """`Embeddings` of the encoder in training: its image features, the base's texts."""

    def __init__(self, features: np.ndarray, texts: _Texts, device: torch.device):
        self._features, self._texts, self._device = features, texts, device

    @property
    def logit_scale(self) -> float:
        return float(self.remember_texts("scale", lambda: np.array(self._texts.tower(self._device).logit_scale)))

    def images(self, kind: str) -> np.ndarray:
        return self._features

    def texts(self, texts: list[str]) -> np.ndarray:
        return self._texts.tower(self._device).embed(texts)

    def remember(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return compute()

    def remember_texts(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if name not in self._texts.cached:
            self._texts.cached[name] = compute()
        return self._texts.cached[name]
