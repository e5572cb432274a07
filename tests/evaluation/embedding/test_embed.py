"""Embeddings once: any batch size, any number of workers, cached or not, killed and resumed give the same arrays."""

import os
import signal
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dcr_hf.evaluation.embedding.embed import DiskEmbedder, embed_in_memory
from dcr_hf.evaluation.embedding.encoders import PretrainedEncoder
from dcr_hf.evaluation.embedding.store import FeatureStore, remember
from dcr_hf.evaluation.readers.decode import ImageError
from dcr_hf.evaluation.readers.image_sets import ImageSet
from helpers.images import encoded, photographs
from helpers.programs import run_program

COUNT = 300  # three chunks, the last one short


@dataclass
class Photographs:
    """Images in memory that record which were read, and kill the process at `kill_at`."""

    contents: list[bytes]
    kill_at: int | None = None
    seen: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.contents)

    def name(self, index: int) -> str:
        return f"image-{index}"

    def read(self, index: int) -> bytes:
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(index)
        return self.contents[index]


@cache
def _contents() -> tuple[bytes, ...]:
    return tuple(encoded(image, "PNG") for image in photographs(COUNT, side=40))


def contents() -> list[bytes]:
    return list(_contents())


def image_set(images: Photographs) -> ImageSet:
    return ImageSet("photos", images, "memory", "1")


def embed(folder, cache: Path, images: Photographs, batch_size=64, workers=0) -> np.ndarray:
    encoder = PretrainedEncoder("e", str(folder))
    embedder = DiskEmbedder(cache, batch_size, workers)
    embedder.embed(encoder, image_set(images))
    return np.array(embedder.embeddings(encoder, image_set(images)).images("projected"))


@pytest.fixture(scope="module")
def reference(clip_folder):
    """One image at a time, no loader, no cache."""
    encoder = PretrainedEncoder("e", str(clip_folder))
    features = [
        encoder.embed_images(encoder.preprocess(image)[None])["projected"] for image in photographs(COUNT, side=40)
    ]
    return np.concatenate(features)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (64, 0), (64, 2), (7, 1), (1000, 0)])
def test_batches_and_workers_do_not_matter(clip_folder, tmp_path, reference, batch_size, workers):
    found = embed(clip_folder, tmp_path, Photographs(contents()), batch_size, workers)
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)


def test_second_run_reads_no_image_and_loads_no_weights(clip_folder, tmp_path, monkeypatch):
    first = embed(clip_folder, tmp_path, Photographs(contents()))
    images = Photographs(contents())
    monkeypatch.setattr(
        "dcr_hf.evaluation.embedding.encoders.load_dual_encoder", lambda *_: pytest.fail("weights loaded")
    )
    np.testing.assert_array_equal(embed(clip_folder, tmp_path, images), first)
    assert images.seen == []


def test_features_are_memory_mapped(clip_folder, tmp_path):
    encoder, data = PretrainedEncoder("e", str(clip_folder)), image_set(Photographs(contents()))
    embedder = DiskEmbedder(tmp_path, workers=0)
    embedder.embed(encoder, data)
    for kind in encoder.kinds:
        assert isinstance(embedder.embeddings(encoder, data).images(kind), np.memmap)


KILLED = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_embed import Photographs, contents, embed
embed(Path({{folder!r}}), Path({{cache!r}}), Photographs(contents(), kill_at={{kill_at}}))
"""


def test_killed_in_the_middle_resumes(clip_folder, tmp_path, reference):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(folder=str(clip_folder), cache=str(tmp_path / "cache"), kill_at=270))
    done = run_program(script)
    assert done.returncode == -signal.SIGKILL, done.stderr
    images = Photographs(contents())
    found = embed(clip_folder, tmp_path / "cache", images)
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)
    assert images.seen == list(range(256, 300))  # two chunks of 128 were done
    assert not list(tmp_path.rglob("chunks"))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(clip_folder, tmp_path, workers):
    broken = contents()
    broken[70] = broken[70][:200]
    with pytest.raises(ImageError, match=r"image-70: damaged"):
        embed(clip_folder, tmp_path, Photographs(broken), workers=workers)


def test_another_encoder_or_revision_is_another_entry(clip_folder, siglip_folder, tmp_path):
    few = contents()[:5]
    embed(clip_folder, tmp_path, Photographs(few))
    embed(siglip_folder, tmp_path, Photographs(few))
    embedder, encoder = DiskEmbedder(tmp_path, workers=0), PretrainedEncoder("other name", str(clip_folder))
    images = Photographs(few)
    embedder.embed(encoder, ImageSet("photos", images, "memory", "1"))
    assert images.seen == []  # what an encoder is called does not matter
    embedder.embed(encoder, ImageSet("photos", images, "memory", "2"))
    assert images.seen == [0, 1, 2, 3, 4]


def test_in_memory_is_the_same(clip_folder, reference):
    encoder = PretrainedEncoder("e", str(clip_folder))
    state = torch.random.get_rng_state()
    found = embed_in_memory(
        lambda pixels: torch.from_numpy(encoder.embed_images(pixels)["projected"]),
        encoder.preprocess,
        image_set(Photographs(contents())),
        batch_size=64,
        workers=0,
    )
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state)  # evaluation does not shift a training run


def test_store_keeps_rows_in_place_whoever_writes_them(tmp_path):
    expected = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    store = FeatureStore(tmp_path / "x", rows=10, chunk_rows=4)
    first, second, third = store.pending()
    assert [first, second, third] == [range(0, 4), range(4, 8), range(8, 10)]
    store.write(third, {"a": expected[8:]})
    again = FeatureStore(tmp_path / "x", rows=10, chunk_rows=4)
    assert again.pending() == [first, second]
    again.write(second, {"a": expected[4:8]})
    again.write(first, {"a": expected[:4]})
    assert not again.is_complete
    again.finish(note="x")
    assert again.is_complete and again.pending() == []
    np.testing.assert_array_equal(again.load("a"), expected)


def test_remember_computes_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(3)

    for _ in range(2):
        np.testing.assert_array_equal(remember(tmp_path / "d" / "x.npy", compute), np.arange(3))
    assert calls == [1]


def test_images_are_decoded_once_for_encoders_with_the_same_processor(clip_folder, siglip_folder, tmp_path, reference):
    images = Photographs(contents())
    data = image_set(images)

    def read_by(embedder, *encoders):
        images.seen.clear()
        for encoder in encoders:
            embedder.embed(encoder, data)
        return len(images.seen)

    first, second = (PretrainedEncoder(name, str(clip_folder), dtype=name) for name in ("float32", "bfloat16"))
    embedder = DiskEmbedder(tmp_path, workers=0, keep=2**24)
    assert read_by(embedder, first, second) == COUNT
    found = [np.array(embedder.embeddings(encoder, data).images("projected")) for encoder in (first, second)]
    np.testing.assert_allclose(found[0], reference, rtol=1e-4, atol=1e-5)
    assert 0 < np.abs(found[1] - reference).max() < 0.1
    assert read_by(embedder, PretrainedEncoder("siglip", str(siglip_folder))) == COUNT  # other pixels
    embedder.forget()
    assert read_by(embedder, PretrainedEncoder("e", str(clip_folder), dtype="float16")) == COUNT
    assert read_by(DiskEmbedder(tmp_path / "small", workers=0, keep=100), first, second) == 2 * COUNT
