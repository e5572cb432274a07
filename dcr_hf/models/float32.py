"""Float32 in full where a number is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, a GPU computes products and convolutions of float32 in float32, not in TF32; then as before.

    A training run turns TF32 on for its process, and cuDNN's convolutions use it by default: errors of about 1e-3,
    enough to change a pair of MMVP. Every evaluation runs in here, inside training and alone.
    """
    # Both: `torch.backends.fp32_precision` alone leaves convolutions in TF32. The second is what each inherits from.
    matmul = torch.backends.cuda.matmul
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # set as the module loads
    switches = ((matmul, torch.backends), (convolution, torch.backends.cudnn))
    before = [switch.fp32_precision for switch, _ in switches]
    try:
        for switch, _ in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for (switch, parent), precision in zip(switches, before, strict=True):
            switch.fp32_precision = "none" if precision == parent.fp32_precision else precision
