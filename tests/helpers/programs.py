"""Python programs as processes of their own that start at once.

An interpreter that imports torch, transformers and diffusers takes seconds before its first line. Here one process
imports them, once and without doing anything else, and every program is a fork of it: with its own arguments,
environment, output and exit code, and as easily killed as any. Launchers fork their ranks in the same way.
"""

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = Path(__file__).parent / "workers"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
# What torchrun's --run-path and --start-method are called where accelerate is the launcher.
FORKED_RANKS = {"PET_RUN_PATH": "1", "PET_START_METHOD": "fork"}

_forks = multiprocessing.get_context("forkserver")
_has_deepspeed = importlib.util.find_spec("deepspeed") is not None  # a machine without it runs the other tests
_preloaded = ["dcr_hf.run", "dcr_hf.evaluation.cli", "torch.distributed.run"]
_forks.set_forkserver_preload([*_preloaded, *(["deepspeed"] if _has_deepspeed else [])])


class Program:
    """`python *argv` from the project's folder, running. It imports from where the test does.

    Args:
        argv: a script's path, or "-m" and a module; then its arguments.
        environment: variables beside those of this process.
    """

    def __init__(self, *argv, **environment: str):
        self._argv = [str(word) for word in argv]
        self._output = tempfile.TemporaryDirectory(prefix="program-")
        variables = os.environ | FORKED_RANKS | environment
        self._process = _forks.Process(target=_become, args=(self._argv, Path(self._output.name), variables))
        self._process.start()
        atexit.register(self._process.kill)  # if a test gave it up; without effect on what has ended
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> subprocess.CompletedProcess:
        """What `subprocess.run` returns."""
        self._process.join()
        printed = [Path(self._output.name, name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self._argv, self._process.exitcode, *printed)


def run_program(*argv, **environment: str) -> subprocess.CompletedProcess:
    """A fork that has ended."""
    return Program(*argv, **environment).wait()


def run_python(*argv, **environment: str) -> subprocess.CompletedProcess:
    """The same by a new interpreter: for tests of the start itself."""
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environment)


def screenshot(page: Path, picture: Path) -> subprocess.CompletedProcess:
    """The page in headless Chromium, as a PNG file; what it writes to the console is in `stderr`."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command = ["chromium", *options, f"--screenshot={picture}", "--window-size=1400,3000", f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def _become(argv: list[str], output: Path, environment: dict[str, str]) -> None:
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    # What a new interpreter would read, and where `helpers` is.
    sys.path[:0] = [str(ROOT / "tests"), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    # This process's own children, DataLoader's workers, start in Python's usual way, not in the way that it did.
    multiprocessing.set_start_method(None, force=True)
    if _has_deepspeed:
        # At the first start on a machine it would compile its own collectives for CPUs, for a minute on two cores.
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")
