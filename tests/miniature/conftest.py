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
    cli.pretrain(tiny_size, output, 0, list(PREDICTION_TYPES))
    return output


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
