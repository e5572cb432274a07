"""TF32: off wherever a number is measured, and what training's switch reaches. The switches exist on any machine."""

import pytest
import torch
from transformers.utils.import_utils import enable_tf32

from dcr_hf.config.base import switch_tf32
from dcr_hf.evaluation import run as evaluation_run
from dcr_hf.mllm import run as mllm_run
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.float32 import full_float32
from dcr_hf.training.validation import TrainingEvaluation
from helpers.evaluation_layouts import write_class_folders


def switches():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def set_all(precision):
    torch.backends.fp32_precision = precision
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        switch.fp32_precision = "none"


def as_before_any_training():
    torch.set_float32_matmul_precision("highest")
    set_all("none")
    torch.backends.cudnn.conv.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def restored():
    yield
    as_before_any_training()


def test_inside_all_is_float32_and_then_as_before():
    for precision in ("tf32", "ieee", "none"):
        set_all(precision)
        before = switches()
        with pytest.raises(KeyError), full_float32():
            assert switches() == ("ieee", "ieee")
            raise KeyError
        assert switches() == before
    # Still inherited: what is set for everything later is followed.
    set_all("tf32")
    with full_float32():
        pass
    torch.backends.fp32_precision = "ieee"
    assert switches() == ("ieee", "ieee")


def test_an_evaluation_inside_training_runs_as_one_alone(clip_folder, tmp_path, monkeypatch):
    write_class_folders(tmp_path / "birds" / "test", {"a": 3, "b": 3})
    evaluation = TrainingEvaluation(str(clip_folder), ["clustering:birds"], tmp_path, workers=0)
    set_all("tf32")  # as training does
    seen = []
    forward = ImageEncoder.forward
    monkeypatch.setattr(ImageEncoder, "forward", lambda *args: seen.append(switches()) or forward(*args))
    evaluation(ImageEncoder.from_pretrained(str(clip_folder)))
    assert seen == [("ieee", "ieee")] and switches() == ("tf32", "tf32")
    for room in (evaluation_run, mllm_run):
        monkeypatch.setattr(room, "PartialState", lambda: seen.append(switches()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluation_run.execute(None, tmp_path, tmp_path)
    with pytest.raises(ZeroDivisionError):
        mllm_run.execute([], {}, tmp_path, tmp_path, 1)
    assert seen == [("ieee", "ieee")] * 3 and switches() == ("tf32", "tf32")


def test_trainings_switch_reaches_convolutions_and_leaves_no_contradiction():
    enable_tf32.__wrapped__(False)
    assert switches() == ("ieee", "tf32")  # if this changes, so may `switch_tf32`
    switch_tf32(False)
    assert switches() == ("ieee", "ieee") and torch.get_float32_matmul_precision() == "highest"
    as_before_any_training()
    enable_tf32.__wrapped__(True)
    with pytest.raises(RuntimeError, match="mix"):
        torch.get_float32_matmul_precision()
    switch_tf32(True)
    assert switches() == ("tf32", "tf32") and torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32
