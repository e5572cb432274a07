"""Time of a call on a device."""

import time
from collections.abc import Callable

import torch


def milliseconds(function: Callable[[], object], device: str, repeat: int = 10) -> float:
    """The median of `repeat` calls after one that does not count; each is waited for."""
    times = []
    for _ in range(repeat + 1):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[repeat // 2]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
