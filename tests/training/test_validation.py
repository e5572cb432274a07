"""Scores of an encoder in memory: those of the same weights on disk, and a training run is left as it was."""

import pytest
import torch

from dcr_hf.evaluation.cli import main
from dcr_hf.evaluation.scoring.results import read_results
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.validation import TrainingEvaluation, metric_name
from helpers.evaluation_layouts import write_class_folders, write_mmvp, write_retrieval
from helpers.programs import TORCHRUN, run_program

BENCHMARKS = ["mmvp_vlm", "clustering:birds", "zeroshot:birds", "linear_probe:birds", "retrieval:flickr30k"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmvp(root / "MMVP_VLM", pairs=9)
    write_class_folders(root / "birds" / "train", {"a": 8, "b": 12, "c": 7})
    write_class_folders(root / "birds" / "test", {"a": 9, "b": 8, "c": 6})
    write_retrieval(root / "flickr30k", [[f"photo {index}", f"view {index}"] for index in range(11)])
    return root


def from_disk(folder, data_root, output) -> dict[str, float]:
    common = ["--data_root", str(data_root), "--output_dir", str(output / "out"), "--cache_dir", str(output)]
    main(["--encoders", f"e={folder}", "--benchmarks", *BENCHMARKS, "--seeds", "0", "--workers", "0", *common])
    return {
        metric_name(row["benchmark"], row["dataset"], row["metric"]): row["value"]
        for row in read_results(output / "out").results
        if row["benchmark"] != "mmvp_vlm" or row["dataset"] == "all"
    }


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_scores_are_those_of_the_checkpoint(encoder_folders, data_root, tmp_path, family):
    folder = str(encoder_folders[family])
    evaluation = TrainingEvaluation(folder, BENCHMARKS, data_root, workers=0)
    scores = evaluation(ImageEncoder.from_pretrained(folder))
    assert scores == from_disk(folder, data_root, tmp_path)
    assert {"mmvp_vlm", "clustering:birds/nmi", "zeroshot:birds/acc1", "linear_probe:birds/acc1"} <= set(scores)
    assert "retrieval:flickr30k/text_to_image_recall@5" in scores


def test_adapter_counts_and_training_is_left_as_it_was(clip_folder, data_root, monkeypatch):
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    evaluation = TrainingEvaluation(str(clip_folder), BENCHMARKS, data_root, workers=0)
    before = evaluation(encoder)
    encoder.add_lora(rank=2, alpha=2, dropout=0.5)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    encoder.train()
    encoder.model.base_model.model.vision_model.eval()
    modes = [module.training for module in encoder.modules()]
    trainable = [parameter.requires_grad for parameter in encoder.parameters()]
    state = torch.random.get_rng_state()
    monkeypatch.setattr("dcr_hf.training.validation.load_dual_encoder", lambda *_: pytest.fail("texts again"))
    after = evaluation(encoder)
    assert after != before
    assert after == evaluation(encoder)  # dropout is off
    assert [module.training for module in encoder.modules()] == modes
    assert [parameter.requires_grad for parameter in encoder.parameters()] == trainable
    assert torch.equal(torch.random.get_rng_state(), state)


def test_modes_are_restored_after_an_error(clip_folder, data_root):
    encoder = ImageEncoder.from_pretrained(str(clip_folder)).train()
    evaluation = TrainingEvaluation(str(clip_folder), ["clustering:birds"], data_root, workers=0)
    evaluation.work["clustering", "birds"].images.paths[0] = "gone.png"
    with pytest.raises(FileNotFoundError, match=r"gone.png"):
        evaluation(encoder)
    assert encoder.training


TWO = """
import sys
from pathlib import Path
from accelerate import PartialState
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.validation import TrainingEvaluation
folder, data, output = sys.argv[1:]
state = PartialState(cpu=True)
assert state.num_processes == 2
evaluation = TrainingEvaluation(folder, {benchmarks}, Path(data), batch_size=4, workers=0)
scores = evaluation(ImageEncoder.from_pretrained(folder))
Path(output, str(state.process_index)).write_text(repr(scores))
"""


def test_two_processes_get_the_numbers_of_one(clip_folder, data_root, tmp_path):
    """Odd sizes: the shares are padded to equal numbers of batches."""
    script = tmp_path / "two.py"
    script.write_text(TWO.format(benchmarks=BENCHMARKS))
    done = run_program(*TORCHRUN, script, clip_folder, data_root, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = TrainingEvaluation(str(clip_folder), BENCHMARKS, data_root, workers=0)(
        ImageEncoder.from_pretrained(str(clip_folder))
    )
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == repr(one)


def test_mistakes_show_before_training(clip_folder, data_root):
    with pytest.raises(ValueError, match=r"unknown set 'cifar99' of benchmark clustering; known: mnist, cifar10"):
        TrainingEvaluation(str(clip_folder), ["clustering:cifar99"], data_root)
    with pytest.raises(FileNotFoundError, match=r"neither a folder here"):
        TrainingEvaluation("/nowhere", ["mmvp_vlm"], data_root)
