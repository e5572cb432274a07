"""Metrics logged with the loss: accumulated on the device, read and averaged when a line is written."""

import time
from collections import Counter

import torch
from torch import Tensor


class MetricsLog:
    """Metrics of this rank since the last line; `line` averages them over steps and ranks.

    Reading a metric makes the host wait for the device, so nothing is read before a line is due.

    Attributes:
        waited: seconds of the window that the host waited for data. The device may have been busy meanwhile, so this
            is an upper bound of the device's wait.
    """

    def __init__(self, world_size: int, device: torch.device):
        self.world_size = world_size
        self.skipped: Counter[str] = Counter()
        self._metrics: list[dict[str, Tensor]] = []
        self._images = 0
        self.waited = 0.0
        self._start: tuple[float, dict[str, int]] | None = None
        self._first_bad_step = torch.full((), -1, device=device)

    def begin(self, counters: dict[str, int]) -> None:
        """Start the clock of the first window, at its first step; `counters` have this rank's counts so far."""
        if self._start is None:
            self._start, self.waited = (time.perf_counter(), counters), 0.0

    def record(self, step: int, loss: Tensor, metrics: dict[str, Tensor], images: int, skipped: list) -> None:
        """One batch: metrics are scalars on the device; skipped are (reason, key)."""
        self._metrics.append(metrics)
        self._images += images
        self.skipped.update(reason for reason, _ in skipped)
        bad_now = ~loss.detach().isfinite() & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad_now, step, self._first_bad_step)

    def line(self, counters: dict[str, int]) -> dict[str, float]:
        """Means over the window and the ranks, rates and counts of all ranks together; begins a new window."""
        if not self._metrics:
            return {}
        assert self._start is not None  # `begin` was called before the first `record`
        begun, before = self._start
        seconds = time.perf_counter() - begun
        counts = {"images": self._images} | {name: count - before[name] for name, count in counters.items()}
        rates = {f"{name}_per_second": count * self.world_size / seconds for name, count in counts.items()}
        rates["data_wait_share"] = self.waited / seconds
        line = self._means() | {name: round(rate, 3) for name, rate in rates.items()} | self._skipped_counts()
        self._metrics, self._images, self.waited = [], 0, 0.0
        self._start = (time.perf_counter(), counters)
        return line

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite on any rank."""
        steps = [step for step in gather_objects(int(self._first_bad_step), self.world_size) if step >= 0]
        return min(steps, default=None)

    def skipped_by_all(self) -> Counter[str]:
        """Images left out since the start, of all ranks, by reason."""
        total: Counter[str] = Counter()
        for counts in gather_objects(dict(self.skipped), self.world_size):
            total.update(counts)
        return total

    def _means(self) -> dict[str, float]:
        names = list(self._metrics[0])
        means = torch.stack([torch.stack([step[name] for name in names]) for step in self._metrics]).mean(dim=0)
        if self.world_size > 1:
            torch.distributed.all_reduce(means)
            means /= self.world_size
        return dict(zip(names, means.tolist(), strict=True))

    def _skipped_counts(self) -> dict[str, int]:
        total = self.skipped_by_all()
        reasons = {f"skipped/{reason.replace(' ', '_')}": count for reason, count in sorted(total.items())}
        return {"skipped_images": total.total(), **reasons}


def gather_objects(value, world_size: int) -> list:
    """Every rank's value, on every rank."""
    if world_size == 1:
        return [value]
    gathered = [None] * world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered
