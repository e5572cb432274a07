"""Kill a run with SIGKILL at random moments, start it again each time, until it ends by itself.

    python crash_worker.py SEED KILLS LONGEST [options of a recipe ...]

The imports are made once; every attempt is a fork of this process. Prints one JSON line: how often it was killed, and
what was there at each kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dcr_hf import Recipe
from dcr_hf.run import main


def attempt(argv: list[str], seconds: float | None) -> int | None:
    """Exit code of one run; None if it was killed after `seconds`."""
    child = os.fork()
    if child == 0:
        sys.argv = ["recipe.py", *argv]
        code = 0
        try:
            main(Recipe(encoder="from/options"))
        except SystemExit as stopped:
            code = stopped.code
        sys.stdout.flush()
        os._exit(code)
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.005)


def crash(seed: int, kills: int, longest: float, argv: list[str]) -> dict:
    moments = random.Random(seed)
    output = Path(argv[argv.index("--output_dir") + 1])
    killed_at = []
    while True:
        seconds = moments.uniform(0.1, longest) if len(killed_at) < kills else None
        code = attempt(argv, seconds)
        if code is not None:
            return {"code": code, "killed_at": killed_at}
        killed_at.append(sorted(str(path.relative_to(output)) for path in output.glob("stage*/*")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed, kills, longest, *options = sys.argv[1:]
    print(json.dumps(crash(int(seed), int(kills), float(longest), options)))
