"""Where the time of a traced step goes, by kind of kernel."""

import re
from collections import Counter, defaultdict

import torch
from torch.autograd import DeviceType

# The first that matches a kernel's name.
KINDS = {
    "compiled, reduction": r"^triton_(red|per)",
    "compiled, elementwise": r"^triton_",
    "attention": r"flash|fmha|sdpa|sdp_|attention|mha",
    "convolution": r"conv|implicit|fprop|dgrad|wgrad",
    "matrix product": r"gemm|nvjet|cutlass|cublas|split_?k|xmma|gemv|aten::(addmm|mm|bmm)",
    "layout change": r"nchw|nhwc|transpose|permute",
    "normalisation": r"norm|moments|welford|InternalGradients|FusedParams",
    "optimizer": r"multi_tensor|adam|foreach",
    "index": r"index|gather|scatter",
    "copy": r"copy|memcpy|memset|cat_|CatArray|fill|aten::cat",
    "softmax": r"softmax",
    "reduction": r"reduce|sum|mean",
    "elementwise": r"elementwise|vectorized|unrolled|aten::(add|mul|sub|div|silu|gelu)",
}


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def summarize(profiler: torch.profiler.profile, wall: float, cuda: bool) -> dict:
    """Milliseconds of a traced step.

    Args:
        wall: seconds of the step, by the clock.
        cuda: kernels count; on a CPU, operations by their own time.

    Returns:
        by kind, the share of the step in which no kernel ran (on a GPU), and the 25 longest kernels.
    """
    milliseconds: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    spans = []
    for event in profiler.events() or ():
        if event.is_user_annotation or (event.device_type == DeviceType.CUDA) != cuda:
            continue
        span = event.time_range
        milliseconds[event.name] += ((span.end - span.start) if cuda else event.self_cpu_time_total) / 1e3
        counts[event.name] += 1
        spans.append((span.start, span.end))
    by_kind: dict[str, float] = defaultdict(float)
    for name, duration in milliseconds.items():
        by_kind[kind_of(name)] += duration
    longest = sorted(milliseconds, key=lambda name: -milliseconds[name])[:25]
    return {
        "wall_ms": round(1e3 * wall, 3),
        "idle_share": round(1 - _covered(spans) / (1e6 * wall), 3) if cuda else None,
        "kernels_started": sum(counts.values()),
        "ms_by_kind": {kind: round(by_kind[kind], 3) for kind in sorted(by_kind, key=lambda kind: -by_kind[kind])},
        "longest": [{"name": n[:160], "count": counts[n], "ms": round(milliseconds[n], 3)} for n in longest],
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    covered = end = 0.0
    for begin, stop in sorted(spans):
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return covered
