"""What a GPU machine has: versions, device, its limits, the switches of TF32, and what layouts survive which layer."""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from clock import milliseconds
from report import matmul_rate
from torch import Tensor, nn
from transformers.utils.import_utils import enable_tf32

from dcr_hf.config.base import switch_tf32

PACKAGES = (
    *("torch", "triton", "transformers", "diffusers", "datasets", "peft", "accelerate", "evaluate", "kornia"),
    *("deepspeed", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "pillow", "pyarrow", "pytest"),
)
IMPORTED = ("dcr_hf.run", "dcr_hf.miniature.run", "dcr_hf.evaluation.cli", "transformers", "diffusers", "peft")


def machine() -> dict:
    """Python, cores, memory in GiB, versions, and where the packages that count come from."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = Path("/dev/shm")
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "shared_memory_gib": round(shutil.disk_usage(shared).total / 2**30, 1) if shared.is_dir() else None,
        "versions": {name: _version(name) for name in PACKAGES},
        "imported_from": {name: import_module(name).__file__ for name in IMPORTED},
    }


def device(name: str, tiny: bool) -> dict:
    """Memory, matrix products and copies of the device. A share of peak is to be read against these."""
    found: dict = {"name": "cpu"}
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": torch.cuda.get_device_capability(),
            "cudnn": torch.backends.cudnn.version(),
        }
    count = 2**24 if tiny else 2**31
    source = torch.empty(count, device=name, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), name)
    rate = matmul_rate(torch.device(name))
    return found | {"matmul_tera_operations_per_second": rate, "copy_tera_bytes_per_second": 2 * count / copy / 1e9}


def tf32_switches() -> dict[str, str]:
    """What the switches say: with torch's new ones set alone, its old ones may raise."""
    switches: dict[str, Callable[[], object]] = {
        "cuda.matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,
        "cudnn.conv.fp32_precision": lambda: torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]  # set as it loads
        "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "get_float32_matmul_precision": torch.get_float32_matmul_precision,
    }
    return {name: _or_error(read) for name, read in switches.items()}


@torch.no_grad()
def layouts(name: str, tiny: bool) -> dict:
    """Whether channels-last survives GroupNorm, a convolution and indexing, and what each layout costs there."""
    batch, dtype = (4, torch.float32) if tiny else (64, torch.bfloat16)
    norm = nn.GroupNorm(32, 320).to(name, dtype)
    conv = nn.Conv2d(320, 320, 3, padding=1).to(name, dtype)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    plain = torch.randn(batch, 320, 28, 28, device=name, dtype=dtype)
    last = plain.to(memory_format=torch.channels_last)
    rows = torch.arange(batch // 2, device=name)
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        "group norm": norm,
        "convolution": conv,
        "indexing": lambda x: x[rows],
    }
    return {
        layer: {
            "keeps channels-last": call(last).is_contiguous(memory_format=torch.channels_last),
            "channels-last, ms": milliseconds(partial(call, last), name),
            "contiguous, ms": milliseconds(partial(call, plain), name),
        }
        for layer, call in layers.items()
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _or_error(read: Callable[[], object]) -> str:
    try:
        return str(read())
    except RuntimeError as error:
        return f"raises: {error}"[:120]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    name = "cuda" if torch.cuda.is_available() else "cpu"
    facts = machine() | {"device": device(name, options.tiny), "layouts": layouts(name, options.tiny)}
    facts["tf32"] = {"at first": tf32_switches()}  # last: these change the process
    enable_tf32(True)
    facts["tf32"]["after transformers' --tf32"] = tf32_switches()
    switch_tf32(True)
    facts["tf32"]["in a run"] = tf32_switches()
    text = json.dumps(facts, indent=1) + "\n"
    (options.output_dir / "environment.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
