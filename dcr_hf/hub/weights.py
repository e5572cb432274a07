"""Which of a repository's weight files are to be loaded: one format of one precision, and nothing else."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

# transformers' name, and diffusers' for both formats
_STEMS = {"safetensors": ("model", "diffusion_pytorch_model"), "bin": ("pytorch_model", "diffusion_pytorch_model")}
VARIANT = "fp16"


@dataclass(frozen=True)
class Weights:
    """The weights of a model.

    Attributes:
        files: their paths, indices included.
        safetensors: the format; else pickled, which only `weights_only` may read.
        variant: "fp16" where there are no others, as `from_pretrained` calls it.
    """

    files: tuple[str, ...]
    safetensors: bool
    variant: str | None


def choose_weights(names: Iterable[str], part: str = "") -> Weights | None:
    """The weights to load from a repository with these files; None if it has none.

    Full precision comes before fp16, for what was rounded stays so, and safetensors before pickled files.

    Args:
        part: the model's folder in the repository.
    """
    prefix = f"{part}/" if part else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    inside = {name for name in inside if "/" not in name}
    for variant in (None, VARIANT):
        for suffix in ("safetensors", "bin"):
            for stem in _STEMS[suffix]:
                files = _files(inside, stem, suffix, variant)
                if files:
                    return Weights(tuple(prefix + name for name in files), suffix == "safetensors", variant)
    return None


def _files(inside: set[str], stem: str, suffix: str, variant: str | None) -> list[str]:
    dotted = f".{variant}" if variant else ""
    single, index = f"{stem}{dotted}.{suffix}", f"{stem}.{suffix}.index{dotted}.json"
    if single in inside:
        return [single]
    if index not in inside:
        return []
    # The variant stands before a shard's number or after it, by the version of the library.
    number, dotted = r"-\d+-of-\d+", re.escape(dotted)
    shard = re.compile(rf"{stem}({dotted}{number}|{number}{dotted})\.{suffix}")
    return [index, *sorted(name for name in inside if shard.fullmatch(name))]
