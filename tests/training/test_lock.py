"""Two runs never work in one folder."""

import signal
import subprocess
import sys

import pytest

from dcr_hf.training import lock
from dcr_hf.training.checkpoints import MARK
from dcr_hf.training.lock import locked
from helpers.programs import ROOT, run_program

HOLD = """
import sys
from dcr_hf.training.lock import locked
with locked(sys.argv[1]):
    print("in", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is at work in tmp_path / "out"."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_run_is_told_where_and_what_to_do(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with pytest.raises(BlockingIOError, match=rf"{tmp_path / 'out'}.*choose another --output_dir"):
        with locked(tmp_path / "out"):
            raise AssertionError("both are in")


def test_only_the_first_process_of_a_run_asks(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with locked(tmp_path / "out", first=False):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_killed_leaves_the_folder_free(holder, tmp_path, end):
    holder.send_signal(end)
    holder.wait()
    with locked(tmp_path / "out"):
        pass


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path):
            raise KeyError
    with locked(tmp_path):
        pass


def test_a_recipe_leaves_what_another_run_is_writing(holder, tmp_path, encoder_folders, sd_folder, shards_folder):
    torn = tmp_path / "out" / "stage1" / "checkpoint-1"  # as every checkpoint is until its mark is written
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half")
    options = ["--encoder", encoder_folders["clip"], "--denoiser", sd_folder, "--train_data", shards_folder,
               "--per_device_train_batch_size", 4, "--use_cpu", "--output_dir", tmp_path / "out"]  # fmt: skip
    done = run_program(ROOT / "recipes" / "openai_vitl.py", *options)
    assert done.returncode == 2
    assert f"another run is at work in {tmp_path / 'out'}" in done.stderr
    assert (torn / "model.safetensors").is_file() and not (torn / MARK).exists()
