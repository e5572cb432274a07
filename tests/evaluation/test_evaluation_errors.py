"""A user's mistake ends the command with one line and code 2; an error of the program keeps its traceback."""

import re
import shutil
from pathlib import Path

import pytest

from dcr_hf.evaluation.cli import main
from helpers.evaluation_layouts import write_class_folders, write_classification, write_mmvp


@pytest.fixture
def data_root(tmp_path) -> Path:
    write_class_folders(tmp_path / "data" / "birds", {"a": 3, "b": 3})
    return tmp_path / "data"


@pytest.fixture
def encoder(clip_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clip_folder, tmp_path / "encoder"))


def arguments(encoder, data_root, *more) -> list[str]:
    given = {"encoders": encoder, "benchmarks": "clustering:birds", "data_root": data_root, "seeds": 0, "workers": 0}
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
        ("config.json", None, r"encoder encoder: .* has neither config.json nor adapter_config.json"),
        ("config.json", b"{", r"encoder encoder: .* not a valid JSON file"),
        ("config.json", b"{}", r"encoder encoder: Unrecognized model"),
        ("config.json", b'{"model_type": "bert"}', r"encoder encoder: .* is a 'bert' model; supported are clip"),
        ("preprocessor_config.json", b"{", r"image processor: .* not a valid JSON file"),
        ("model.safetensors", None, r"encoder .* has no weights"),
    ],
)
def test_broken_encoders(encoder, data_root, capsys, file, content, message):
    (encoder / file).unlink()
    if content is not None:
        (encoder / file).write_bytes(content)
    assert re.search(message, refusal(capsys, arguments(encoder, data_root)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("birds/classnames.txt", b"\xff\xfa", r"data set 'birds': .*classnames.txt is not in UTF-8"),
        ("birds/classnames.txt", b"one\n", r"classnames.txt names 1 classes"),
        (
            "MMVP_VLM/Questions.csv",
            b"Question ID,Type,Statement\n1,\xff,b\n",
            r"MMVP-VLM: line 2 of .*Questions.csv is not in UTF-8",
        ),
        ("cifar10/test/0.tar", b"no tar" + bytes(1024), r"the shards in .*test cannot be read: "),
        ("cifar10/test/nshards.txt", b"many", r"says 'many', expected the number of shards"),
    ],
)
def test_broken_data(encoder, data_root, capsys, file, content, message):
    write_mmvp(data_root / "MMVP_VLM", pairs=9)
    write_classification(data_root / "cifar10", [0, 1] * 3, ["one", "two"])
    (data_root / file).write_bytes(content)
    chosen = {"birds": "clustering:birds", "MMVP_VLM": "mmvp_vlm", "cifar10": "zeroshot:cifar10"}[file.split("/")[0]]
    assert re.search(message, refusal(capsys, arguments(encoder, data_root, "--benchmarks", chosen)))


@pytest.mark.parametrize("option", ["--output_dir", "--cache_dir"])
def test_folders_that_cannot_be_written(encoder, data_root, capsys, option):
    line = refusal(capsys, arguments(encoder, data_root, option, f"{__file__}/below"))
    assert re.search(rf"{option} \S*below: \S*test_evaluation_errors\.py is a file; a folder is needed", line)


def test_results_of_earlier_runs(encoder, data_root, capsys):
    out = data_root.parent / "out"
    main(arguments(encoder, data_root))
    again = ["--compare", str(out), "--output_dir", str(out / "both")]
    assert "no results at" in refusal(capsys, ["--compare", "/nowhere", "--output_dir", str(out / "both")])
    (prediction,) = (out / "predictions").iterdir()
    prediction.write_text("{")
    assert re.search(r"predictions in .*\.jsonl: Expecting property name", refusal(capsys, again))
    prediction.unlink()
    assert re.search(r"predictions in .*\.jsonl: .*No such file", refusal(capsys, again))
    (out / "results.json").write_text("[]")
    assert "is no results.json of recipes/evaluate.py" in refusal(capsys, again)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
@pytest.mark.parametrize("place", ["run.write_outputs", "plan.read_sets", "embedding.embed.decode_image"])
def test_errors_of_the_program_keep_their_traceback(encoder, data_root, monkeypatch, kind, place):
    def fail(*_):
        raise kind("a bug")

    monkeypatch.setattr(f"dcr_hf.evaluation.{place}", fail)
    with pytest.raises(kind, match=r"^a bug$"):
        main(arguments(encoder, data_root))
