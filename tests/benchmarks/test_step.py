"""benchmarks/step.py measures the Trainer's own step, and a way that fails is a row beside the others."""

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--batch", "2", "--steps", "1", "--image_size", "64", "--sd", "tiny", "--encoder", "tiny"]


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step

    return step


def rows_of(folder):
    return {row["name"]: row for row in json.loads((folder / "step.json").read_text())["rows"]}


def test_a_way_that_fails_is_a_row_and_the_others_are_saved(step, tmp_path, monkeypatch):
    from released import ReleasedStep

    from dcr_hf.denoiser import frozen

    finish = frozen.finish

    def no_more_than_four(unet, beginning, biases):
        if len(biases) > 4:
            raise torch.OutOfMemoryError("out of memory on purpose")
        return finish(unet, beginning, biases)

    def too_large(*args):
        raise torch.OutOfMemoryError("out of memory on purpose")

    monkeypatch.setattr(frozen, "finish", no_more_than_four)
    monkeypatch.setattr(ReleasedStep, "__call__", too_large)
    step.main(["--output_dir", str(tmp_path), *TINY, "--ways", "released", "all", "2+profile", "auto+flash"])
    rows = rows_of(tmp_path)
    released, at_once, small, flash = rows.values()
    assert released["failed"] == "out of memory" and released["seconds"] is None
    # Six pairs did not fit, three did: that is another measurement than the one asked for.
    assert at_once["note"] == "out of memory: halved to chunks of 3" and at_once["plan"] == [[3, 1]]
    assert small["failed"] is None and small["note"] is None and small["plan"] == [[2, 1]]
    for row in (at_once, small):
        assert row["seconds"] > 0 and row["peak_bytes"] > 0 and row["tera_operations"] > 0
        assert row["relative_loss_difference"] < 1e-5
    assert small["kernels"]["ms_by_kind"]["convolution"] > 0
    assert "attention" in small["kernels"]["ms_by_kind"] and flash["failed"] is None
    table = (tmp_path / "step.md").read_text()
    assert "| released manner | 2 | out of memory | |" in table
    assert "ours, all at once (out of memory: halved to chunks of 3)" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_rows_are_saved_as_they_are_made(step, tmp_path, monkeypatch):
    from step_bench import Bench

    measure = Bench.measure

    def killed_at_the_second(bench, way, batch, brief=False):
        if way.chunk == "auto":
            raise KeyboardInterrupt
        return measure(bench, way, batch, brief)

    monkeypatch.setattr(Bench, "measure", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        step.main(["--output_dir", str(tmp_path), *TINY, "--stage", "1", "--ways", "all", "auto"])
    [row] = rows_of(tmp_path).values()
    assert row["failed"] is None and row["seconds"] > 0


def test_what_failed_is_not_drawn_and_the_others_are_in_order(step, tmp_path):
    from report import plot_sweep, sweep_lines

    runs = [("8", 4), ("0", 4), ("32", 4), ("-", 4), ("0", 2), ("32", 2), ("-", 2), ("64", 4)]
    rows = [{"chunk": chunk, "batch": batch, "failed": None, "seconds": 1, "peak_bytes": 2} for chunk, batch in runs]
    rows[3]["failed"] = "out of memory"
    chunks, batches = sweep_lines(rows, 4)
    assert [*chunks] == ["8", "32", "64", "all"]
    assert {title: [*points] for title, points in batches.items()} == {
        "ours, all at once": [2, 4],
        "ours, chunks of 32": [2, 4],
        "released manner": [2],
    }
    facts = dict.fromkeys(
        ("device", "dtype", "torch", "diffusers", "transformers", "sd", "encoder", "image_size"), "x"
    )
    plot_sweep(tmp_path / "step.png", rows, facts | {"batch": "4"})
    assert (tmp_path / "step.png").stat().st_size > 10_000


@pytest.mark.parametrize("text", ["all+fast", "some"])
def test_an_unknown_way_is_refused(step, text, capsys):
    with pytest.raises(SystemExit):
        step.parse(["--output_dir", "x", "--ways", text])
    assert "--ways" in capsys.readouterr().err
