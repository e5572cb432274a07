"""The passes for a GPU machine, rehearsed on a CPU: every step runs, and what fails is a line of the table."""

import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.programs import Program

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"
# What the steps of a pass import by their own names must not be what another test has imported.
OWN = ("run", "passes", "clock", "attention", "environment", "parity", "make_models", "interrupted", "carry")


@pytest.fixture
def run(monkeypatch):
    """run.py, whose steps are forks of one process that has imported what they need."""
    monkeypatch.syspath_prepend(str(GPU))
    import run

    def execute(command, folder, log, limit, environment):
        program = Program(*command, **environment)
        done = program.wait()
        log.write_text(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr(run, "execute", execute)
    yield run
    for name in OWN:
        sys.modules.pop(name, None)


def result(path):
    return json.loads(path.read_text())


def rehearse(run, number, output):
    code = run.main([str(number), "--tiny", "--output_dir", str(output)])
    rows = result(output / f"pass{number}.json")
    assert [row for row in rows if row["exit"] != 0] == [] and code == 0
    return {row["step"]: row for row in rows}


def test_contact(run, tmp_path):
    output = tmp_path / "gpu"
    steps = rehearse(run, 1, output)
    assert list(steps) == ["environment", "attention", "parity", "models", "interrupted"]
    environment, parity = result(output / "environment.json"), result(output / "parity.json")
    assert environment["imported_from"]["dcr_hf.run"] == str(ROOT / "dcr_hf" / "run.py")
    assert environment["device"]["matmul_tera_operations_per_second"] > 0
    assert environment["layouts"]["convolution"]["keeps channels-last"] is True
    assert environment["tf32"]["in a run"]["get_float32_matmul_precision"] == "high"
    assert parity["float64, fast"][0] < 1e-12 and parity["float32, fast"][0] < 1e-4
    assert parity["bfloat16, fast, the same to the last bit at every call"] == [True, True]
    assert parity["planner"]["chosen"] == [20, 1]
    attention = result(output / "attention.json")
    assert len(attention) == 12
    assert all(max(row["kernels"]["default"]["errors"]) < 1e-5 for row in attention)
    interrupted = result(output / "interrupted.json")
    assert interrupted["SIGKILL in stage2"]["exit"] == -9 and interrupted["resumed"]["exit"] == 0
    same = interrupted["killed and resumed against undisturbed"]
    assert same["equal to the last bit"] == same["tensors"] > 20
    page = (output / "pass1.md").read_text()
    assert "| interrupted | ok |" in page and "## attention" in page
    with tarfile.open(output / "logs1.tgz") as logs:
        assert {"1-parity.log", "interrupted-killed.log"} <= set(logs.getnames())


def test_steps_and_sizes(run, tmp_path):
    output = tmp_path / "gpu"
    rehearse(run, 2, output)
    eager, compiled = (result(output / name / "step.json")["rows"] for name in ("step_eager", "step_compiled"))
    assert [row["failed"] for row in eager + compiled] == [None] * 3
    assert compiled[0]["warmup_seconds"] > 3 * compiled[0]["seconds"]  # tracing is in it
    rehearse(run, 3, output)
    assert result(output / "chunks" / "step.json")["rows"][0]["plan"] == [[2, 1]]
    assert "released manner" in (output / "pass2.md").read_text()


def test_the_miniature_is_pretrained(run, tmp_path):
    rehearse(run, 4, tmp_path / "gpu")
    assert (tmp_path / "gpu-work" / "pretrained" / "sd-miniature" / "unet").is_dir()


def test_what_fails_is_a_line_and_the_others_run(run, tmp_path, monkeypatch):
    steps = [run.Step("broken", 60, ["-c", "raise SystemExit('no such device')"]), run.Step("right", 60, ["-c", "1"])]
    steps += [run.Step("slow", 1, ["-c", "import time; print('begun', flush=True); time.sleep(60)"])]
    monkeypatch.undo()  # real processes
    monkeypatch.setitem(run.PASSES, 1, lambda where: steps)
    output = tmp_path / "gpu"
    assert run.main(["1", "--output_dir", str(output)]) == 1
    rows = result(output / "pass1.json")
    assert [row["result"] for row in rows] == ["failed with 1", "ok", "took too long"]
    assert [row.get("last_line") for row in rows] == ["no such device", None, "begun"]
    assert "| broken | failed with 1 |" in (output / "pass1.md").read_text()
    assert run.main(["1", "--output_dir", str(output), "--seconds", "0"]) == 1
    assert {row["result"] for row in result(output / "pass1.json")} == {"no time left"}


def test_wheels_are_installed_without_a_network_and_found(run, tmp_path, monkeypatch):
    wheel = tmp_path / "wheels" / "brought_along-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("brought_along.py", "answer = 42")
        archive.writestr(
            "brought_along-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought-along\nVersion: 1\n"
        )
        archive.writestr("brought_along-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("brought_along-1.dist-info/RECORD", "")
    steps = [run.Step("found", 60, ["-c", "import brought_along, sys; sys.exit(brought_along.answer)"])]
    monkeypatch.undo()
    monkeypatch.setitem(run.PASSES, 1, lambda where: steps)
    assert run.main(["1", "--output_dir", str(tmp_path / "gpu"), "--wheels", str(wheel.parent)]) == 1
    rows = result(tmp_path / "gpu" / "pass1.json")
    assert [(row["step"], row["exit"]) for row in rows] == [("wheels", 0), ("found", 42)]


def test_every_pass_names_files_that_exist(run, tmp_path):
    for tiny in (True, False):
        where = run.Where(tmp_path / "out", tmp_path / "work", tiny)
        for number, steps in run.PASSES.items():
            for step in steps(where):
                [script] = [word for word in step.command if word.endswith(".py")]
                assert Path(script).is_file(), (number, step)
                assert step.limit <= 480, (number, step)
