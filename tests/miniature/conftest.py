"""The miniature's own models, a few steps old."""

import dataclasses

import pytest

from dcr_hf.miniature import cli, pretrain
from dcr_hf.miniature.models import PREDICTION_TYPES, SIZES

STEPS = 6


@pytest.fixture(scope="session")
def tiny_size():
    mini = SIZES["mini"]
    return dataclasses.replace(
        mini,
        images=96,
        clip_images=48,
        steps=dict.fromkeys(mini.steps, STEPS),
        batch=dict.fromkeys(mini.batch, 8),
    )


@pytest.fixture(scope="session")
def draw(tiny_size):
    return pretrain.TrainingDraw.of(tiny_size, seed=0)


@pytest.fixture(scope="session")
def pretrained(tiny_size, tmp_path_factory):
    """A folder with all that pretraining leaves."""
    output = tmp_path_factory.mktemp("pretrained")
    cli.pretrain(tiny_size, output, 0, list(PREDICTION_TYPES), ["coarse", "fine"])
    return output
