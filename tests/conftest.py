"""Fixtures of all tests: tiny models and shards, built once a run."""

import os
from pathlib import Path

# Before torch is imported, here and in every process that a test starts: in two test processes on two cores, threads
# for tiny tensors mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import pytest

from helpers.images import encoded, photographs, write_shard
from helpers.tiny_models import save_clip, save_siglip, save_stable_diffusion


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def clip_folder(models_folder) -> Path:
    return save_clip(models_folder / "clip-tiny")


@pytest.fixture(scope="session")
def siglip_folder(models_folder) -> Path:
    return save_siglip(models_folder / "siglip-tiny")


@pytest.fixture(scope="session")
def encoder_folders(clip_folder, siglip_folder) -> dict[str, Path]:
    return {"clip": clip_folder, "siglip": siglip_folder}


@pytest.fixture(scope="session")
def sd_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny")


@pytest.fixture(scope="session")
def sd_v_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny-v", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def sd_xl_folder(models_folder) -> Path:
    return save_stable_diffusion(models_folder / "sd-tiny-xl", version="xl")


@pytest.fixture(scope="session")
def shards_folder(tmp_path_factory) -> Path:
    """Three shards of 16 photographs in CC3M's layout, with three broken members among them."""
    folder = tmp_path_factory.mktemp("cc3m")
    images = [encoded(image, quality=90) for image in photographs(48)]
    for shard in range(3):
        samples = {f"{shard:05d}{i:04d}": images[shard * 16 + i] for i in range(16)}
        samples[f"{shard:05d}0003"] = {
            0: images[3][: len(images[3]) // 3],  # truncated
            1: b"<html><body>404</body></html>",
            2: b"",
        }[shard]
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory) -> Path:
    """Tables that `datasets` converts stay out of the user's cache, here and in what a test starts."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HF_DATASETS_CACHE"] = str(datasets.config.HF_DATASETS_CACHE)
    return datasets.config.HF_DATASETS_CACHE


def pytest_addoption(parser):
    parser.addoption("--crashes", type=int, default=10, help="how often the crash test kills a run")


# Files that take a minute and more, the longest first.
LONG = [
    f"tests/{name}.py"
    for name in (
        "training/test_resume",
        "training/test_strategies",
        "test_run",
        "training/test_trainer",
        "benchmarks/test_gpu",
    )
]


def pytest_collection_modifyitems(items):
    """A test process takes the next file when it is through with one: long ones first, and both end together."""
    files = {item: item.nodeid.split("::")[0] for item in items}
    for item in items:
        if files[item] in LONG:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.index(files[item]) if files[item] in LONG else len(LONG))


@pytest.fixture
def refusal(capsys):
    """Calls a command and returns the one line with which it refuses its arguments, with code 2."""

    def call(main, arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        *before, line = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and ": error: " in line and not any("Traceback" in other for other in before)
        return line

    return call
