"""A user's mistake ends the command with one line and code 2; an error of the program keeps its traceback."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from dcr_hf.mllm.cli import main
from helpers.mllm_layouts import save_talkative_llava, write_cv_bench, write_mmvp_questions


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return save_talkative_llava(tmp_path_factory.mktemp("llava") / "llava-tiny")


@pytest.fixture
def llava(intact, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(intact, tmp_path / "llava"))


@pytest.fixture
def data_root(tmp_path) -> Path:
    write_mmvp_questions(tmp_path / "data" / "MMVP", pairs=2)
    write_cv_bench(tmp_path / "data" / "CV-Bench")
    return tmp_path / "data"


def arguments(llava, data_root, *more) -> list[str]:
    given = {"models": llava, "benchmarks": "mmvp", "data_root": data_root, "workers": 0, "max_new_tokens": 2}
    given |= {"output_dir": data_root.parent / "out", "cache_dir": data_root.parent / "cache"}
    return [*(str(word) for name, value in given.items() for word in (f"--{name}", value)), *more]


def refusal(capsys, command: list[str]) -> str:
    """The one line that the command ends with, under code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line or "Traceback" in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("MMVP/Questions.csv", b"Index,Question\n", r"MMVP: .*Questions.csv lacks Options, Correct Answer"),
        (
            "MMVP/Questions.csv",
            b"Index,Question,Options,Correct Answer\n1,\xff",
            r"MMVP: line 2 of .*Questions.csv is not in UTF-8",
        ),
        ("CV-Bench/test_2d.parquet", b"PAR1", r"CV-Bench: .*test_2d.parquet is not a complete parquet file"),
    ],
)
def test_broken_data(llava, data_root, capsys, file, content, message):
    (data_root / file).write_bytes(content)
    chosen = ["--benchmarks", "mmvp" if file.startswith("MMVP") else "cv_bench"]
    assert re.search(message, refusal(capsys, arguments(llava, data_root, *chosen)))


def test_damaged_weights_and_replies(llava, data_root, capsys):
    weights = (llava / "model.safetensors").read_bytes()
    (llava / "model.safetensors").write_bytes(weights[:-100])
    assert re.search(r"model llava: '.*llava': ", refusal(capsys, arguments(llava, data_root)))
    (llava / "model.safetensors").write_bytes(weights)
    main(arguments(llava, data_root))
    (replies,) = (data_root.parent / "cache").rglob("*.jsonl")
    replies.write_text("{\n")
    assert re.search(r"replies in .*\.jsonl: Expecting property name", refusal(capsys, arguments(llava, data_root)))


@pytest.mark.parametrize("option", ["--output_dir", "--cache_dir"])
def test_folders_that_cannot_be_written(llava, data_root, capsys, option):
    line = refusal(capsys, arguments(llava, data_root, option, f"{__file__}/below"))
    assert re.search(r"test_mllm_errors.py/below\S* cannot be written: Not a directory", line)


def test_memory_that_does_not_suffice(llava, data_root, capsys, monkeypatch):
    def exhaust(*_, **__):
        raise torch.OutOfMemoryError("for the test.")

    monkeypatch.setattr("transformers.LlavaForConditionalGeneration.generate", exhaust)
    line = refusal(capsys, arguments(llava, data_root))
    assert re.search(r"model llava: out of memory at --batch_size 8: for the test\. .* a smaller --batch_size", line)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
@pytest.mark.parametrize("place", ["run.predict", "cli.read_benchmarks", "model.decode_image"])
def test_errors_of_the_program_keep_their_traceback(llava, data_root, monkeypatch, kind, place):
    def fail(*_):
        raise kind("a bug")

    monkeypatch.setattr(f"dcr_hf.mllm.{place}", fail)
    with pytest.raises(kind, match=r"^a bug$"):
        main(arguments(llava, data_root))
