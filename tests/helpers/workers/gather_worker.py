"""Run by torchrun on two processes: one step with the conditions of both, written down by each rank."""

import gc
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcr_hf import FrozenDenoiser
from dcr_hf.objectives import Diffused, Negatives, Settings, dcr
from helpers.runs import batch_of_conditions, diffused_at_random

BATCH, WIDTH = 3, 7  # of each rank, of the embeddings


def batch_of(ranks: list[int], denoiser: FrozenDenoiser) -> tuple[Tensor, Tensor, Diffused]:
    """Embeddings, views' embeddings and latents of these ranks together."""
    embeddings, views, parts = [], [], []
    for rank in ranks:
        generator = torch.Generator().manual_seed(rank)
        embeddings.append(torch.randn(BATCH, WIDTH, generator=generator))
        views.append(torch.randn(BATCH, WIDTH, generator=generator))
        parts.append(vars(diffused_at_random(denoiser, BATCH, seed=rank)))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(embeddings), torch.cat(views), Diffused(**joined)


def projector(denoiser: FrozenDenoiser) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, denoiser.condition_width)


def step(model: nn.Module, denoiser: FrozenDenoiser, ranks: list[int], negatives: Negatives) -> dict:
    embeddings, views, diffused = batch_of(ranks, denoiser)
    conditions, view_conditions = model(torch.cat([embeddings, views])).chunk(2)
    batch = batch_of_conditions(diffused, conditions, view_conditions)
    outcome = dcr(denoiser, batch, Settings(negatives=negatives))
    outcome.loss.backward()
    return {
        "loss": outcome.loss.detach(),
        "evaluations": denoiser.evaluations,
        "gradients": [parameter.grad for parameter in model.parameters()],
        "metrics": outcome.metrics,
    }


def write_step(denoiser_folder: str, output: str, detach: bool) -> None:
    rank = torch.distributed.get_rank()
    denoiser = FrozenDenoiser.from_pretrained(denoiser_folder)
    model = DistributedDataParallel(projector(denoiser))
    record = step(model, denoiser, [rank], Negatives(gather=True, detach=detach))
    torch.save(record, Path(output) / f"detach{detach}-rank{rank}.pt")


def main(denoiser_folder: str, output: str) -> None:
    torch.distributed.init_process_group("gloo")
    for detach in (False, True):
        write_step(denoiser_folder, output, detach)
    # A DDP module that outlives its process group is the last to hold it: freed under Python's lock, it then waits for
    # gloo's threads, which wait for the lock.
    gc.collect()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
