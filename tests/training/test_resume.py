import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcr_hf import Recipe, run
from dcr_hf.data.stream import StreamState
from dcr_hf.training.checkpoints import (
    MARK,
    ResumeError,
    check_resume,
    complete_checkpoints,
    remove_incomplete,
    rotate,
    writing,
)
from dcr_hf.training.trainer import DCRTrainer
from helpers.programs import ROOT, TORCHRUN, WORKERS, Program, run_program

RECIPE = ROOT / "recipes" / "openai_vitl.py"


def test_the_state_of_an_optimizer_is_read_to_a_cpu_with_an_index(tmp_path):
    torch.save({"exp_avg": torch.ones(3)}, tmp_path / "optimizer.pt")
    state = torch.load(tmp_path / "optimizer.pt", map_location=torch.device("cpu", 0), weights_only=True)
    assert state["exp_avg"].tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def settings(clip_folder, sd_folder, shards_folder):
    """Every option but the folder of the run."""
    return {
        "--encoder": clip_folder,
        "--denoiser": sd_folder,
        "--train_data": shards_folder,
        "--stage1_max_steps": 4,
        "--stage2_max_steps": 6,
        "--stage2_learning_rate": 1e-3,
        "--per_device_train_batch_size": 3,
        "--gradient_accumulation_steps": 2,
        "--logging_steps": 1,
        "--save_steps": 1,
        "--dataloader_num_workers": 0,
        "--max_bad_fraction": 0.2,
        "--shuffle_buffer": 12,
    }


@pytest.fixture
def options(settings, tmp_path):
    return settings | {"--output_dir": tmp_path / "out"}


def words(options):
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture
def run_here(monkeypatch, capsys):
    def call(options, *more):
        monkeypatch.setattr(sys, "argv", ["recipe.py", *words(options), *more])
        try:
            run.main(Recipe(encoder="from/options"))
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err

    return call


def results(output):
    """Every weight that a run left as its result."""
    files = [output / "stage1" / "projector" / "model.safetensors", output / "stage2" / "adapter_model.safetensors"]
    files += sorted(output.glob("*-dcr*/model.safetensors"))
    assert len(files) == 4
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(output, expected, stage2_steps=6):
    found = results(output)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    for stage, steps in (("stage1", 4), ("stage2", stage2_steps)):
        history = json.loads((output / stage / "trainer_state.json").read_text())["log_history"]
        assert [line["step"] for line in history if "loss" in line] == list(range(1, steps + 1))
        assert [line["epoch"] for line in history if "loss" in line] == [step / steps for step in range(1, steps + 1)]


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    done = run_program(RECIPE, *words(settings | {"--output_dir": output}))
    assert done.returncode == 0, done.stderr
    return results(output)


@contextlib.contextmanager
def at_step(monkeypatch, stage, step, action):
    """Do something, once, in the middle of a step."""
    original, done = DCRTrainer.compute_loss, []

    def compute_loss(self, *args, **kwargs):
        if Path(self.args.output_dir).name == stage and self.state.global_step == step - 1 and not done:
            done.append(step)
            action()
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DCRTrainer, "compute_loss", compute_loss)
        yield


class Crash(BaseException):
    pass


def crash():
    raise Crash


def test_sigkill_at_random_moments_changes_nothing(options, tmp_path, request):
    """In either stage, while a checkpoint or the export is written. --crashes N kills more often."""
    seed = random.SystemRandom().randrange(10**6)
    kills = request.config.getoption("--crashes")
    print(f"seed {seed}")

    def worker(output, kills):
        command = [WORKERS / "crash_worker.py", seed, kills, 2.5]
        done = run_program(*command, *words(options | {"--output_dir": output, "--dataloader_num_workers": 1}))
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout.splitlines()[-1])
        assert outcome["code"] == 0, done.stderr
        return outcome["killed_at"]

    worker(tmp_path / "whole", 0)
    expected, killed = results(tmp_path / "whole"), 0
    for attempt in range(kills):
        killed += len(worker(tmp_path / f"crashed{attempt}", kills - killed))
        assert_same(tmp_path / f"crashed{attempt}", expected)
        if killed >= kills:
            break
    assert killed >= kills


def launch_two(options, output):
    """The recipe on two gloo processes."""
    options = options | {"--output_dir": output, "--stage2_max_steps": 12}
    return Program(*TORCHRUN, RECIPE, "--use_cpu", *words(options))


def end_of(program):
    done = program.wait()
    return done.returncode, done.stderr


def reach_stage_2(program, output):
    """Wait for its second checkpoint; returns the launcher's processes, by rank."""
    while program.poll() is None and not (output / "stage2" / "checkpoint-2" / MARK).exists():
        time.sleep(0.01)
    assert program.poll() is None, program.wait().stderr
    ranks = psutil.Process(program.pid).children()
    assert len(ranks) == 2
    return sorted(ranks, key=lambda rank: rank.pid)


@pytest.fixture
def two_uninterrupted(options, tmp_path):
    code, error = end_of(launch_two(options, tmp_path / "whole"))
    assert code == 0, error
    return results(tmp_path / "whole")


def test_two_processes_killed_or_signalled_and_resumed_end_alike(options, two_uninterrupted, tmp_path):
    # Dead between the last checkpoint and the result, and the rank that makes the result of it is slow.
    late = tmp_path / "late"
    shutil.copytree(tmp_path / "whole" / "stage1", late / "stage1")
    shutil.rmtree(late / "stage1" / "projector")
    wanted = options | {"--output_dir": late, "--stage2_max_steps": 12}
    done = Program(*TORCHRUN, WORKERS / "slow_finish_worker.py", "--use_cpu", *words(wanted)).wait()
    assert done.returncode == 0, done.stderr
    assert_same(late, two_uninterrupted, stage2_steps=12)

    killed = tmp_path / "killed"
    program = launch_two(options, killed)
    for rank in reach_stage_2(program, killed):
        rank.kill()
    assert end_of(program)[0] != 0
    assert not (killed / "stage2" / "adapter_model.safetensors").exists()

    # Only one rank gets it; both stop after the same step, with one complete checkpoint of that step.
    signalled = tmp_path / "signalled"
    program = launch_two(options | {"--save_steps": 2}, signalled)
    reach_stage_2(program, signalled)[1].terminate()
    code, error = end_of(program)
    assert code != 0 and "exitcode  : 75" in error
    steps = set(re.findall(r"stopped by a signal at step (\d+) of 12", error))
    assert len(steps) == 1
    assert complete_checkpoints(signalled / "stage2")[-1].name == f"checkpoint-{steps.pop()}"

    for output in (killed, signalled):
        code, error = end_of(launch_two(options, output))
        assert code == 0, error
        assert_same(output, two_uninterrupted, stage2_steps=12)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_torn_newest_checkpoint_is_not_taken(options, run_here, uninterrupted, monkeypatch, stage):
    folder = options["--output_dir"] / stage
    with at_step(monkeypatch, stage, 4, crash), pytest.raises(Crash):
        run_here(options)
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    (folder / "checkpoint-3" / MARK).unlink()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"half")
    assert run_here(options)[0] == 0
    assert_same(options["--output_dir"], uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_with_a_checkpoint_and_code_75(options, run_here, uninterrupted, monkeypatch, number):
    options |= {"--save_steps": 100}
    before = signal.getsignal(number)
    with at_step(monkeypatch, "stage2", 3, lambda: os.kill(os.getpid(), number)):
        code, error = run_here(options)
    assert code == 75
    assert logged_steps(options["--output_dir"] / "stage2") == [1, 2, 3]
    assert "stopped by a signal at step 3 of 6" in error and "same command again" in error
    assert [path.name for path in complete_checkpoints(options["--output_dir"] / "stage2")] == ["checkpoint-3"]
    assert not (options["--output_dir"] / "clip-tiny-dcr").exists()
    assert signal.getsignal(number) is before
    assert run_here(options)[0] == 0
    assert_same(options["--output_dir"], uninterrupted)


def test_a_second_signal_stops_at_once(options, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal; from dcr_hf import Recipe, run; from dcr_hf.training.trainer import DCRTrainer\n"
        "def twice(*args, **kwargs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
        "DCRTrainer.compute_loss = twice\n"
        "run.main(Recipe(encoder='from/options'))\n"
    )
    done = run_program(program, *words(options))
    assert done.returncode == -signal.SIGTERM
    assert "send it again to stop at once" in done.stderr and "still here" not in done.stdout


def test_dying_between_the_last_checkpoint_and_the_result(options, run_here, uninterrupted, monkeypatch):

    from dcr_hf.training import fit

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(fit, "put_in_place", lambda *args: crash())
        run_here(options)
    assert (options["--output_dir"] / "stage1" / "checkpoint-4" / MARK).is_file()
    assert run_here(options)[0] == 0
    assert_same(options["--output_dir"], uninterrupted)


def test_dying_during_the_export(options, run_here, uninterrupted, monkeypatch):
    from dcr_hf.export import merge as export

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(export, "write_card", lambda *args: crash())
        run_here(options)
    trained = (options["--output_dir"] / "stage2" / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_here(options)[0] == 0
    assert_same(options["--output_dir"], uninterrupted)
    assert (options["--output_dir"] / "stage2" / "adapter_model.safetensors").stat().st_mtime_ns == trained


def logged_steps(folder):
    """What TensorBoard shows of a stage's loss."""
    log = EventAccumulator(str(folder / "runs")).Reload()
    return [event.step for event in log.Scalars("train/loss")]


def test_tensorboard_shows_no_step_twice(options, run_here, monkeypatch):
    """Steps 3 and 4 are logged, lost with the process and logged again."""
    options |= {"--save_steps": 2}
    with at_step(monkeypatch, "stage2", 5, crash), pytest.raises(Crash):
        run_here(options)
    (options["--output_dir"] / "stage2" / "checkpoint-4" / MARK).unlink()
    assert run_here(options)[0] == 0
    assert logged_steps(options["--output_dir"] / "stage2") == [1, 2, 3, 4, 5, 6]
    assert len(list((options["--output_dir"] / "stage2" / "runs").iterdir())) == 2


def interrupt(options, monkeypatch):
    with at_step(monkeypatch, "stage2", 3, crash), pytest.raises(Crash):
        monkeypatch.setattr(sys, "argv", ["recipe.py", *words(options)])
        run.main(Recipe(encoder="from/options"))


@pytest.fixture(scope="module")
def interrupted(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(settings | {"--output_dir": output}, patch)
    return output


@pytest.fixture
def copy_of_interrupted(interrupted, options):
    """In the place where `options` has the run."""
    return shutil.copytree(interrupted, options["--output_dir"])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"--temperature": 0.2}, "temperature: 0.1 -> 0.2"),
        ({"--per_device_train_batch_size": 4}, "per_device_train_batch_size: 3 -> 4"),
        ({"--seed": 7}, "seed: 42 -> 7"),
        ({"--stage2_learning_rate": 0.5}, "learning_rate: 0.001 -> 0.5"),
        ({"--denoiser": "v"}, "denoiser: "),
        ({"--dataloader_num_workers": 2}, "dataloader_num_workers: 0 -> 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_going_on_with_other_options_is_refused(
    options, run_here, copy_of_interrupted, sd_v_folder, changes, difference
):
    changes = {name: sd_v_folder if value == "v" else value for name, value in changes.items()}
    code, error = run_here(options | changes)
    assert code == 2 and difference in error and "--resume_anyway" in error
    code, error = run_here(options | changes, "--resume_anyway")
    assert code == 0, error
    assert difference in error and "no longer exact" in error


def test_more_steps_and_other_logging_are_no_other_options(options, run_here, copy_of_interrupted):
    code, error = run_here(options | {"--stage2_max_steps": 7, "--logging_steps": 3, "--save_steps": 2})
    assert code == 0, error


def test_going_on_with_another_number_of_readers_reads_no_image_twice(options, run_here, monkeypatch):
    """From one reader to two, in the middle of an epoch; and to more than there are lanes."""
    keys = []
    compute_loss = DCRTrainer.compute_loss

    def recording(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        if Path(self.args.output_dir).name == "stage2" and inputs["position"][1]["epoch"] == 0:
            keys.extend(inputs["keys"])
        return loss

    monkeypatch.setattr(DCRTrainer, "compute_loss", recording)
    interrupt(options, monkeypatch)
    state = StreamState.read(complete_checkpoints(options["--output_dir"] / "stage2")[-1])
    assert state.lanes == 2 and state.batches == 4 and len(keys) == 12
    code, error = run_here(options | {"--dataloader_num_workers": 3}, "--resume_anyway")
    assert code == 2 and "dealt into 2 lanes" in error
    code, error = run_here(options | {"--dataloader_num_workers": 2}, "--resume_anyway")
    assert code == 0, error
    assert len(keys) == len(set(keys)) > 30


def keep(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / MARK).write_text("{}")


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(2, None, [3, 10]), (1, None, [10]), (1, "checkpoint-2", [2, 10]), (None, None, [1, 2, 3, 10])],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, best, left):
    keep(tmp_path, 1, 2, 3, 10)
    rotate(tmp_path, limit, best and str(tmp_path / best))
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_a_limit_of_one_never_leaves_none(options, run_here, uninterrupted, monkeypatch):
    """The new checkpoint is complete before the old one goes: dying between leaves two."""
    from dcr_hf.training import resumable

    options |= {"--save_total_limit": 1}
    folder = options["--output_dir"] / "stage1"
    marked = Counter()
    mark_complete = resumable.mark_complete

    def die_before_the_second_mark(checkpoint, facts):
        marked[checkpoint.parent.name] += 1
        if marked["stage1"] == 2:
            raise Crash
        mark_complete(checkpoint, facts)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(resumable, "mark_complete", die_before_the_second_mark)
        run_here(options)
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-1"]
    assert run_here(options)[0] == 0
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-4"]
    assert_same(options["--output_dir"], uninterrupted)


def test_torn_checkpoints_are_removed_and_nothing_else(tmp_path):
    keep(tmp_path, 1, 2)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "runs").mkdir()
    remove_incomplete(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2", "runs"}


def test_facts_that_differ_are_listed(tmp_path):
    (tmp_path / MARK).write_text(json.dumps({"seed": 1, "temperature": 0.1}))
    assert check_resume(tmp_path, {"seed": 1, "temperature": 0.1}, anyway=False) == []
    with pytest.raises(ResumeError, match=r"seed: 1 -> 2; temperature: 0\.1 -> 0\.2"):
        check_resume(tmp_path, {"seed": 2, "temperature": 0.2}, anyway=False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("seen", ["beforehand", "while writing"])
def test_a_full_disk_keeps_what_was_saved(options, run_here, uninterrupted, monkeypatch, small_disk, seen):
    from dcr_hf.training import checkpoints

    options |= {"--output_dir": small_disk / "out", "--report_to": "none"}
    filler = small_disk / "filler"

    def fill():
        with filler.open("ab") as file:
            file.write(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))

    with at_step(monkeypatch, "stage2", 3, fill), monkeypatch.context() as patch:
        if seen == "while writing":
            patch.setattr(checkpoints.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))
        code, error = run_here(options)
    assert code == 2 and f"could not write {small_disk}/out/stage2/checkpoint-3" in error
    assert ("are missing" in error) == (seen == "beforehand")
    assert [path.name for path in complete_checkpoints(small_disk / "out" / "stage2")] == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    filler.unlink()
    assert run_here(options)[0] == 0
    assert_same(small_disk / "out", uninterrupted)


def test_an_error_that_is_not_about_writing_stays_itself(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "checkpoint-1", 10):
        raise KeyError("a mistake")
