"""A tower of every geometry, language models and LLaVAs, built once."""

import pytest

from helpers.tiny_llava import GEOMETRIES, save_llama, save_llava


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """{name: dual encoder's folder}; not those that the LLaVA was built around."""
    folder = tmp_path_factory.mktemp("towers")
    return {name: geometry.save(folder / name, seed=7) for name, geometry in GEOMETRIES.items()}


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama") / "vicuna-tiny")


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """LLaVA-1.5's: CLIP L at 336 pixels, in three shards."""
    folder = tmp_path_factory.mktemp("llava")
    tower = GEOMETRIES["clip-l-336"].save(folder / "clip-original")
    return save_llava(folder / "llava-tiny", tower, shards=3)
