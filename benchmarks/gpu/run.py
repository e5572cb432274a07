"""One pass on a GPU machine: its steps one after the other, each failure recorded, the results written after each.

    python benchmarks/gpu/run.py 1 --output_dir out/gpu

README.md beside this file says what the passes are and what to bring. On a machine without a GPU, --tiny rehearses.
Writes passN.json, passN.md and logsN.tgz into --output_dir, beside what the steps write. Needs Python alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from passes import GPU, PASSES, ROOT, Step, Where

SHORTEST = 10  # a step is not begun with fewer seconds left


def execute(command: list[str], folder: Path, log: Path, limit: float, environment: dict[str, str]) -> int | None:
    """Run `python *command`; both of its outputs go to `log`. Returns its exit code; None if it ran out of time."""
    with log.open("w", encoding="utf-8") as output:
        variables = os.environ | environment
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with what it has started: a DataLoader's worker holds the GPU too
            process.wait()
            return None


def run(number: int, where: Where, seconds: float, wheels: Path | None) -> list[dict]:
    """All steps of a pass, as far as the time goes.

    Returns:
        for each step its name, exit code, what it means and its seconds.
    """
    where.output.mkdir(parents=True, exist_ok=True)
    where.logs.mkdir(parents=True, exist_ok=True)
    environment, begun, rows = variables_of(where), time.monotonic(), []
    planned = list(PASSES[number](where))
    if wheels is not None:
        planned.insert(0, _installation(wheels, where))
    for step in planned:
        left = seconds - (time.monotonic() - begun)
        row: dict = {"step": step.name, "exit": None, "result": "no time left", "seconds": 0.0}
        if left >= SHORTEST:
            limit = left if where.tiny else min(step.limit, left)
            folder, start = step.folder or ROOT, time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            log = where.logs / f"{number}-{step.name}.log"
            code = execute(step.command, folder, log, limit, environment)
            result = "ok" if code == 0 else f"failed with {code}" if code is not None else "took too long"
            row |= {"exit": code, "result": result, "seconds": round(time.monotonic() - start, 1)}
            if code != 0:
                row["last_line"] = _last_line(log)
        rows.append(row)
        print(f"{row['step']}: {row['result']}, {row['seconds']} s", flush=True)
        for file in filter(Path.is_file, step.brings):
            shutil.copy(file, where.output / f"{step.name}-{file.name}")
        _write(where, number, rows)
    return rows


def variables_of(where: Where) -> dict[str, str]:
    """What every step's process gets: no network is looked for, and caches stay below `work`."""
    places = [str(where.work / "site"), str(ROOT), str(GPU.parent), str(GPU)]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [*places, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(where.work / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(where.work / "inductor"),
    }


def _installation(wheels: Path, where: Where) -> Step:
    files = sorted(map(str, wheels.glob("*.whl")))
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    return Step("wheels", 120, [*pip, "--target", str(where.work / "site"), *files])


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _write(where: Where, number: int, rows: list[dict]) -> None:
    """Results so far: the rows, a page with them and the steps' own tables, the logs."""
    (where.output / f"pass{number}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = ["| step | result | seconds | last line |", "|---|---|---|---|"]
    for row in rows:
        said = row.get("last_line", "").replace("|", "/")
        lines.append(f"| {row['step']} | {row['result']} | {row['seconds']} | {said} |")
    for row in rows:
        tables = [where.output / f"{row['step']}.md", where.output / row["step"] / "step.md"]
        for table in filter(Path.is_file, tables):
            lines += ["", f"## {row['step']}", "", table.read_text(encoding="utf-8").strip()]
    (where.output / f"pass{number}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tarfile.open(where.output / f"logs{number}.tgz", "w:gz") as archive:
        for log in sorted(where.logs.glob("*.log")):
            archive.add(log, log.name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=PASSES, help="the pass")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--work_dir", type=Path, help="models and checkpoints; by default beside --output_dir")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, as carry.py fills it")
    parser.add_argument("--seconds", type=float, default=530, help="of the pass")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    options = parser.parse_args(arguments)
    output = options.output_dir.resolve()
    work = (options.work_dir or output.with_name(f"{output.name}-work")).resolve()
    rows = run(options.number, Where(output, work, options.tiny), options.seconds, options.wheels)
    return int(any(row["exit"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
