"""The control: the encoder moved as far as training moved it, in random directions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dcr_hf.diagnostics.distance import TrainedRun
from dcr_hf.errors import AlreadyExistsError, NotFoundError, UserError
from dcr_hf.export import copy_side_files
from dcr_hf.models.results import has_encoder

_CLOSE = 0.01  # of the wanted distance
_TRIES = 40


@dataclass(frozen=True)
class Control:
    """A randomly moved encoder: its folder, the seed, the factor of the change, and its mean cosine distance."""

    folder: Path
    seed: int
    factor: float
    distance: float


def write_controls(
    run: Path, seeds: list[int], output_dir: Path, checkpoint: Path | None = None
) -> tuple[float, list[Control]]:
    """A CLIP or SigLIP folder for each seed, and the distance of the run itself, or of one of its checkpoints.

    Every weight that training changed is changed by a random matrix with the same singular values (a vector: of the
    same length) times a factor, which is chosen so that the embeddings of the run's fixed images move as far on
    average. What a benchmark gives to these encoders too is no effect of what was learned.

    Raises:
        NotFoundError: no finished stage that trained the encoder, or not its fixed images.
        AlreadyExistsError: a folder is there.
        UserError: the run moved nothing, or no factor moves the encoder as far.
    """
    trained_run = TrainedRun.read(run)
    result = checkpoint or trained_run.stage
    if not has_encoder(result):
        raise NotFoundError(f"--checkpoint {result} holds no trained encoder.")
    for seed in seeds:
        if (output_dir / str(seed)).exists():
            raise AlreadyExistsError(f"{output_dir / str(seed)} exists. Remove it, or give another --output_dir.")
    base, after = trained_run.load(), trained_run.load(result)
    distance_of = trained_run.distances_from(base)
    wanted = distance_of(after)
    if not wanted > 0:
        raise UserError(f"--run {run}: training did not move the embeddings; there is nothing to compare with.")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    trained_weights = after.state_dict()
    changes = {
        name: trained_weights[name] - weight
        for name, weight in before.items()
        if not torch.equal(trained_weights[name], weight)
    }

    def moved(directions: dict[str, Tensor], factor: float) -> float:
        base.load_state_dict({**before, **{name: before[name] + factor * d for name, d in directions.items()}})
        return distance_of(base)

    controls = []
    for seed in tqdm(seeds, desc="random controls", unit="encoder"):
        generator = torch.Generator().manual_seed(seed)
        directions = {name: random_like(change, generator) for name, change in changes.items()}
        factor, distance = find_factor(partial(moved, directions), wanted)
        folder = output_dir / str(seed)
        base.save_pretrained(folder)
        copy_side_files(trained_run.encoder, folder)
        controls.append(Control(folder, seed, factor, distance))
    return wanted, controls


def random_like(change: Tensor, generator: torch.Generator) -> Tensor:
    """A random change of the same size: a matrix with the same singular values between random bases, else a vector of
    the same length. Convolutions count as matrices, an output channel a row."""
    if change.ndim < 2:
        drawn = torch.randn(change.shape, generator=generator)
        return drawn * (change.norm() / drawn.norm())
    matrix = change.flatten(1).float()
    values = torch.linalg.svdvals(matrix)
    values = values[values > values[0] * 1e-6]  # the rank of adapters
    left, right = (torch.linalg.qr(torch.randn(side, len(values), generator=generator))[0] for side in matrix.shape)
    return ((left * values) @ right.T).view_as(change)


def find_factor(moved: Callable[[float], float], wanted: float) -> tuple[float, float]:
    """The factor for which `moved(factor)` is within 1 % of `wanted`, by bisection, and what it is there.

    Raises:
        UserError: no factor up to 2 ** 20 moves as far.
    """
    low, high = 0.0, 1.0
    while (reached := moved(high)) < wanted:
        low, high = high, 2 * high
        if high > 2**20:
            raise UserError(f"no random change moves the embeddings by {wanted:.2g}; the largest did {reached:.2g}.")
    factor = high
    for _ in range(_TRIES):
        if abs(reached - wanted) <= _CLOSE * wanted:
            break
        factor = (low + high) / 2
        reached = moved(factor)
        low, high = (factor, high) if reached < wanted else (low, factor)
    return factor, reached
