"""A run of both stages through its command line; another that is killed and resumed; are their weights the same?

    python benchmarks/gpu/interrupted.py --work WORK --output_dir OUT [--exact] [--tiny]

needs WORK/models, as make_models.py makes them. SIGTERM in stage 1 has to end with code 75 and a checkpoint, SIGKILL
in stage 2 with what was saved before. A second run that nothing disturbs says what two runs differ by on this device.
With --exact, torch's algorithms are deterministic and the chunks are fixed: every bit should then be the same.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from passes import ROOT, Where
from safetensors.torch import load_file

KILLS = (("stage1", signal.SIGTERM), ("stage2", signal.SIGKILL))


class Runs:
    """The same command into several folders below `work`; what was found is in a JSON file of the results."""

    def __init__(self, where: Where, exact: bool):
        self.where, self.name = where, "interrupted_exact" if exact else "interrupted"
        self.found: dict[str, Any] = {}
        steps, batch, workers = (3, 2, 0) if where.tiny else (20, 16, 4)
        models = where.work / "models"
        options = {
            "--encoder": models / "clip",
            "--denoiser": models / "sd",
            "--train_data": models / "shards",
            "--stage1_max_steps": steps,
            "--stage2_max_steps": steps,
            "--save_steps": max(1, steps // 4),
            "--save_total_limit": 2,
            "--logging_steps": max(1, steps // 4),
            "--report_to": "none",
            "--per_device_train_batch_size": batch,
            "--shuffle_buffer": 100,
            "--dataloader_num_workers": workers,
        } | ({"--full_determinism": "true", "--pair_chunk_size": 32} if exact else {})
        recipe = str(ROOT / "recipes" / "openai_vitl.py")  # not by accelerate's launcher, which has its own exit code
        self.command = [sys.executable, recipe, *(str(word) for pair in options.items() for word in pair)]

    def keep(self, name: str, value: Any) -> None:
        self.found[name] = value
        text = json.dumps(self.found, indent=1) + "\n"
        (self.where.output / f"{self.name}.json").write_text(text, encoding="utf-8")
        print(name, value, flush=True)

    def run(self, name: str, kill: tuple[str, int] | None = None) -> dict:
        """To the end, or until a checkpoint of the stage is complete: then it gets the signal."""
        folder, begun = self.where.work / name, time.perf_counter()
        with (self.where.logs / f"{self.name}-{name}.log").open("a", encoding="utf-8") as log:
            command = [*self.command, "--output_dir", str(folder)]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            while process.poll() is None:
                time.sleep(0.1)
                if kill is not None and list((folder / kill[0]).glob("checkpoint-*/complete.json")):
                    process.send_signal(kill[1])
                    kill = None
        return {"exit": process.returncode, "seconds": round(time.perf_counter() - begun, 1)}

    def log_of(self, name: str, stage: str) -> list[dict]:
        state = json.loads((self.where.work / name / stage / "trainer_state.json").read_text(encoding="utf-8"))
        return [line for line in state["log_history"] if "loss" in line]

    def compare(self, one: str, other: str) -> dict:
        """Tensors of both stages' results."""
        a, b = (
            load_file(self.where.work / name / "stage1" / "projector" / "model.safetensors")
            | load_file(self.where.work / name / "stage2" / "adapter_model.safetensors")
            for name in (one, other)
        )
        pairs = [(a[name].double(), b[name].double()) for name in a]
        distances = [((x - y).norm() / x.norm().clamp(min=1e-12)).item() for x, y in pairs]
        same = sum(bool((a[name] == b[name]).all()) for name in a)
        return {"tensors": len(a), "equal to the last bit": same, "largest relative distance": max(distances)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    runs = Runs(Where(options.output_dir, options.work, options.tiny), options.exact)
    for name in ("undisturbed", "killed", "again"):  # of an earlier call
        shutil.rmtree(options.work / name, ignore_errors=True)
    runs.keep("undisturbed", runs.run("undisturbed"))
    for stage in ("stage1", "stage2"):
        lines = runs.log_of("undisturbed", stage)
        runs.keep(f"{stage}, last line of the log", lines[-1])
        runs.keep(f"{stage}, images a second", [line["images_per_second"] for line in lines])
    # Tiny: the suite tests the signals already, each start costs seconds.
    for stage, number in KILLS[1:] if options.tiny else KILLS:
        runs.keep(f"{signal.Signals(number).name} in {stage}", runs.run("killed", (stage, number)))
    runs.keep("resumed", runs.run("killed"))
    runs.keep("killed and resumed against undisturbed", runs.compare("undisturbed", "killed"))
    if not (options.tiny or options.exact):
        runs.keep("again undisturbed", runs.run("again"))
        runs.keep("again undisturbed against undisturbed", runs.compare("undisturbed", "again"))


if __name__ == "__main__":
    main()
