"""SIGTERM and SIGINT: finish the step, write a checkpoint, stop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import torch
from transformers import TrainerCallback

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """Asks the Trainer for a checkpoint and an end after the step in which a signal arrived.

    Ranks may get the signal in different steps, and all must stop after the same one: at the end of every step each
    rank sends whether it was signalled, and reads at the end of the next whether any was. The all-reduce runs during
    the step, on the CPU.

    Attributes:
        stopped: True if a signal ended training.
    """

    def __init__(self):
        self.stopped = False
        self._received: int | None = None
        self._owner = os.getpid()
        self._group = None
        self._exchange: tuple[torch.Tensor, torch.distributed.Work] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside, where Python allows it: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_end(self, args, state, control, **kwargs):
        self.settle()

    def settle(self) -> None:
        """Wait for what is still being exchanged."""
        if self._exchange is not None:
            self._exchange[1].wait()
            self._exchange = None

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_rank_was_signalled():
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True

    def any_rank(self, flag: bool) -> bool:
        """True if it is true on any rank. To be called by all, between steps."""
        if self._group is None:
            return flag
        flags = torch.tensor([float(flag)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flags.item())

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:  # the second one stops at once, as without a handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._received = number
        if os.getpid() != self._owner:  # a loader worker that was forked: the main process speaks
            return
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step, with a checkpoint; send it again to stop at once.", file=sys.stderr)

    def _any_rank_was_signalled(self) -> bool:
        if self._group is None:
            return self._received is not None
        before, self._exchange = self._exchange, None
        signalled = False
        if before is not None:
            flag, exchange = before
            exchange.wait()
            signalled = bool(flag.item())
        if not signalled:
            flag = torch.tensor([float(self._received is not None)])
            exchange = torch.distributed.all_reduce(
                flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
            )
            self._exchange = (flag, exchange)
        return signalled
