"""What a score depends on: hashes of the weights, and a run's machine and packages."""

import hashlib
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

from dcr_hf.errors import NotFoundError
from dcr_hf.hub import local_folder

PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "pillow")


def weights_revision(path: str, what: str = "encoder") -> str:
    """The hash of a local folder's weights, or a hub snapshot's commit."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return local_folder(path).name
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise NotFoundError(f"{what} {path} has no weights: no model*.safetensors in the folder.")
    return hash_files(weights)


def hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def run_facts(state: PartialState) -> dict:
    """Command, time, device and versions of this run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name() if state.device.type == "cuda" else str(state.device),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
