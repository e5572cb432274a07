"""The ways to make a step that benchmarks/step.py compares, and what a row of its table holds."""

from dataclasses import dataclass

from torch.nn.attention import SDPBackend

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
WORDS = {"checkpointing", "contiguous", "loader", "profile", *KERNELS}


@dataclass(frozen=True)
class Way:
    """A way to make a step; chunk is None for the released manner."""

    chunk: int | str | None
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> "Way":
        """`CHUNK[+WORD...]`. Raises ValueError, as argparse wants it."""
        chunk, *words = text.split("+")
        if unknown := set(words) - WORDS:
            raise ValueError(f"unknown: {', '.join(unknown)}")
        sizes = {"released": None, "all": 0, "auto": "auto"}
        return cls(sizes[chunk] if chunk in sizes else int(chunk), tuple(words))

    @property
    def name(self) -> str:
        names = {None: "released manner", 0: "ours, all at once", "auto": "ours, auto"}
        return ", ".join((names.get(self.chunk, f"ours, chunks of {self.chunk}"), *self.words))


@dataclass
class Row:
    """One way's step. Bytes are those of tensors made in the step on a CPU, and of all on a GPU.

    `plan` is (pairs a chunk, chunks kept) as it was in the end; `note` says where that is not what was asked for.
    """

    name: str
    batch: int
    chunk: str
    seconds: float | None = None
    seconds_in_a_row: float | None = None
    host_seconds: float | None = None
    warmup_seconds: float | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    tera_operations: float | None = None
    relative_loss_difference: float | None = None
    plan: list[tuple[int, int]] | None = None
    kernels: dict | None = None
    note: str | None = None
    failed: str | None = None
