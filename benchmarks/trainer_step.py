"""The steps of a Trainer, measured from inside its own loop: memory, time, operations, kernels."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from kernel_kinds import summarize
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback

from dcr_hf import DCRTrainer
from dcr_hf.denoiser.planner import LiveBytes

WARM_UP = 2  # work spaces, the chunk plan, compilation, the optimizer's state


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter does not know the CPU's attention.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class OneImage(Dataset):
    """The same random image in every row: enough for `steps` batches."""

    def __init__(self, side: int, batch: int, steps: int):
        pixels = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self._item, self._rows = {"image": pixels, "key": "0", "skipped": []}, batch * steps

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> dict:
        return self._item


class ReleasedTrainer(DCRTrainer):
    """DCRTrainer with another loss; all around it is the same."""

    released: Callable[..., Tensor]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.released(model, inputs["images"])
        self.observe(loss, {})
        return loss


@dataclass
class Measured:
    """Seconds of steps, each waited for; on a CPU those of the processor, which others' load does not change."""

    seconds: list[float] = field(default_factory=list)
    host_seconds: list[float] = field(default_factory=list)
    seconds_in_a_row: float | None = None
    warmup_seconds: float | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    tera_operations: float | None = None
    kernels: dict | None = None


class StepMeter(TrainerCallback):
    """Measures steps of `train()`: first warm-up, then memory, times, operations and kernels, each in its own steps.

    The Trainer fetches a batch before `on_step_begin`, so that no step contains its data; those "in a row" do.

    Args:
        timed: number of timed steps.
        operations: also count operations; not for compiled models, whose operations the counter does not see.
        profile: also trace one step.
    """

    def __init__(self, device: torch.device, timed: int, operations: bool, profile: bool = False):
        self.cuda = device.type == "cuda"
        kinds = ["warm-up"] * WARM_UP + ["memory"] + ["time"] * timed + ["in a row"] * (timed + 1)
        self.kinds = kinds + ["operations"] * operations + ["profile"] * profile
        self.found = Measured()
        self._clock = time.perf_counter if self.cuda else time.process_time
        self._begun, self._row_begun = self._clock(), 0.0
        self._stack = ExitStack()
        self._inside: LiveBytes | FlopCounterMode | torch.profiler.profile | None = None

    @property
    def steps(self) -> int:
        return len(self.kinds)

    def close(self) -> None:
        """Leave what a step that failed has entered."""
        self._stack.close()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        kind, step = self.kinds[state.global_step], state.global_step
        if kind == "in a row":
            if self.kinds[step - 1] != kind:
                self.wait()
            elif self.kinds[step - 2] != kind:  # the first one pays for the wait before it
                self._row_begun = self._clock()
            return
        self.wait()
        if kind == "memory":
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            else:
                self._inside = self._stack.enter_context(LiveBytes())
        elif kind == "operations":
            counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            self._inside = self._stack.enter_context(counter)
        elif kind == "profile":
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] * self.cuda
            self._inside = self._stack.enter_context(torch.profiler.profile(activities=activities))
        self._begun = time.perf_counter() if kind == "profile" else self._clock()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step = state.global_step - 1  # the Trainer has counted it already
        kind, host = self.kinds[step], self._clock() - self._begun
        last_of_kind = step + 1 == len(self.kinds) or self.kinds[step + 1] != kind
        if kind == "in a row":
            if last_of_kind:
                self.wait()
                self.found.seconds_in_a_row = (self._clock() - self._row_begun) / (self.kinds.count(kind) - 1)
            return
        self.wait()
        if kind == "warm-up":
            self.found.warmup_seconds = (self.found.warmup_seconds or 0.0) + self._clock() - self._begun
        elif kind == "time":
            self.found.host_seconds.append(host)
            self.found.seconds.append(self._clock() - self._begun)
        self._read(kind)

    def _read(self, kind: str) -> None:
        wall = time.perf_counter() - self._begun
        self._stack.close()
        if kind == "memory" and self.cuda:
            self.found.peak_bytes = torch.cuda.max_memory_allocated()
            self.found.reserved_bytes = torch.cuda.max_memory_reserved()
        elif isinstance(self._inside, LiveBytes):
            self.found.peak_bytes = self._inside.peak
        elif isinstance(self._inside, FlopCounterMode):
            self.found.tera_operations = self._inside.get_total_flops() / 1e12
        elif isinstance(self._inside, torch.profiler.profile):
            self.found.kernels = summarize(self._inside, wall, self.cuda)
        self._inside = None

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
