"""How a run was made: command, options, versions; kept beside its results as run.json."""

import importlib.metadata
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dcr_hf.errors import NotFoundError, as_user_error
from dcr_hf.hub import hub_id, pin

_PACKAGES = ("torch", "transformers", "diffusers", "datasets", "peft", "accelerate", "kornia")


@dataclass(frozen=True)
class RunFacts:
    """What somebody needs to make the same encoder again.

    Attributes:
        encoder, denoiser, train_data: as given; the encoder's folder absolute, for exports from elsewhere.
        command: as typed.
        options: every option's value.
        world_size: processes.
        stages: what each stage of the run does, in order: name, trains_encoder, steps, learning_rate, objective.
        versions: of the packages that matter.
        commit: of this repository, where it is one.
        revisions: of encoder, denoiser and train_data the hub's commit, or a fingerprint of the folder.
        log: the last line of the log of the stage that trained the encoder.
    """

    encoder: str
    denoiser: str
    train_data: str
    command: str
    options: dict[str, Any]
    world_size: int
    versions: dict[str, str]
    commit: str | None
    stages: list[dict[str, Any]] = field(default_factory=list)
    revisions: dict[str, str] = field(default_factory=dict)
    log: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_this_run(
        cls,
        encoder: str,
        denoiser: str,
        train_data: str,
        options: dict[str, Any],
        world_size: int,
        stages: list[dict[str, Any]],
        revisions: dict[str, str] | None = None,
    ) -> "RunFacts":
        return cls(
            encoder=encoder if hub_id(encoder) else str(Path(encoder).expanduser().absolute()),
            denoiser=denoiser,
            train_data=train_data,
            stages=stages,
            revisions=revisions or {},
            **how_it_runs(options, world_size),
        )

    def pin_encoder(self) -> None:
        """Let an id of the hub mean the commit with which the run began."""
        if hub_id(self.encoder):
            pin("encoder", self.encoder, commit=self.revisions.get("encoder"))

    @classmethod
    def read(cls, output_dir: Path) -> "RunFacts":
        file = output_dir / "run.json"
        if not file.is_file():
            raise NotFoundError(f"{output_dir} has no run.json: it is not the --output_dir of a recipe.")
        with as_user_error(str(file), ValueError, TypeError):
            return cls(**json.loads(file.read_text(encoding="utf-8")))

    @property
    def encoder_stage(self) -> str:
        """The folder, in the run's own, of the stage that trained the encoder."""
        trained = [stage["name"] for stage in self.stages if stage["trains_encoder"]]
        if trained:
            return trained[-1]
        # Run by a version that did not list its stages, or stage 1 alone.
        return "end_to_end" if self.options["stage"] == "end_to_end" else "stage2"

    def write(self, output_dir: Path) -> None:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "run.json").write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")

    def with_log_of(self, stage_folder: Path) -> "RunFacts":
        """With the last line of training that the stage's (or checkpoint's) trainer_state.json holds."""
        history = json.loads((stage_folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        lines = [line for line in history if "loss" in line]
        return replace(self, log=lines[-1] if lines else {})


def how_it_runs(options: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Command, options, processes, versions and commit of this process."""
    return {
        "command": "accelerate launch " + shlex.join(_without_token(sys.argv)),
        "options": options,
        "world_size": world_size,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "commit": _git_commit(),
    }


def _git_commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed without its repository
        return None
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changes = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    ).stdout
    return commit + (" with local changes" if changes.strip() else "") if commit else None


def _without_token(argv: list[str]) -> list[str]:
    return ["***" if before in ("--hub_token", "--hub-token") else word for before, word in pairwise(["", *argv])]
