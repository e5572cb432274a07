"""The cosine between the gradients of a run's two losses: do they conflict? Measured during training."""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import all_reduce
from transformers import TrainerCallback

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.condition import ConditionModel
from dcr_hf.objectives import Batch, Outcome, Settings, contrastive, reconstruction

# What the log's lines hold.
COSINE, NEGATIVE_SHARE = "gradient_conflict/cosine", "gradient_conflict/negative_share"
NORM, LAYER = "gradient_conflict/norm/", "gradient_conflict/layer/"


class GradientConflict(TrainerCallback):
    """Measures every N optimizer steps, without touching the gradients that train.

    The gradients are those that the step minimises: means over its accumulated batches and over all ranks. They need
    the memory of the trained parameters twice.

    Args:
        model: as it is before a strategy wraps it; what requires a gradient is looked at.
        every: optimizer steps.
        log: takes a line of the log.
    """

    def __init__(self, model: ConditionModel, every: int, log: Callable[[dict[str, float]], None]):
        self.parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        self.every = every
        self._log = log
        self._gradients: dict[str, list[Tensor]] = {}
        self._batches = 0

    def is_due(self, finished_steps: int) -> bool:
        return (finished_steps + 1) % self.every == 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """One batch of the step: two losses by name, scalars whose graphs are kept."""
        self._batches += 1
        for name, term in terms.items():
            found = torch.autograd.grad(
                term, list(self.parameters.values()), retain_graph=True, materialize_grads=True
            )
            before = self._gradients.get(name)
            self._gradients[name] = list(found if before is None else torch._foreach_add(before, found))

    def on_step_end(self, args, state, control, **kwargs):
        if not self._gradients:
            return
        gradients, self._gradients = self._gradients, {}
        batches, self._batches = self._batches * args.world_size, 0
        for tensors in gradients.values():
            torch._foreach_div_(tensors, batches)
            if args.world_size > 1:
                for tensor in tensors:
                    all_reduce(tensor)
        line = describe_conflict(list(self.parameters), gradients)
        if COSINE in line:
            earlier = [past[COSINE] for past in state.log_history if COSINE in past]
            negative = [cosine < 0 for cosine in [*earlier, line[COSINE]]]
            line[NEGATIVE_SHARE] = sum(negative) / len(negative)
            due = control.should_log
            self._log(line)
            control.should_log = due  # any line takes the Trainer's own, of the same step, to be written


def describe_conflict(names: list[str], gradients: dict[str, list[Tensor]]) -> dict[str, float]:
    """The log's line: the cosine over all parameters, that of each layer, and both norms.

    Args:
        names: of the parameters.
        gradients: of the two losses by name, a tensor a parameter. Where one vanishes, there is no cosine.
    """
    (first_name, first), (second_name, second) = gradients.items()
    products = [
        torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]) for a, b in zip(first, second, strict=True)
    ]
    table = torch.stack(products).cpu().double()  # (parameters, 3); the one time that the host waits for the device
    layers: dict[str, Tensor] = {}
    for name, row in zip(names, table, strict=True):
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + row
    total = table.sum(dim=0)
    cosines = {COSINE: total} | {LAYER + layer: sums for layer, sums in layers.items()}
    line = {
        key: (sums[0] / (sums[1] * sums[2]).sqrt()).item() for key, sums in cosines.items() if sums[1] * sums[2] > 0
    }
    return line | {NORM + first_name: total[1].sqrt().item(), NORM + second_name: total[2].sqrt().item()}


def layer_of(parameter: str) -> str:
    """'encoder.model.base_model.model.vision_model.encoder.layers.3.mlp.fc1...' -> '3', the transformer's layer; else
    the module: 'visual_projection', 'embeddings', 'projector.1', 'projector.patch_layers.1'."""
    numbered = re.search(r"\.encoder\.layers\.(\d+)\.", parameter)
    if numbered:
        return numbered[1]
    inner = ("model", "base_model", "vision_model", "layers", "weight", "bias")
    parts = [part for part in parameter.split(".") if part not in inner]
    return ".".join(parts) if parts[0] == "projector" else parts[1]


def conflicting_terms(
    denoiser: FrozenDenoiser, batch: Batch, settings: Settings, outcome: Outcome
) -> dict[str, Tensor]:
    """The two losses to compare: the objective's own two, or its one and the baseline that it leaves out.

    The RNG is forked; training is unaffected.
    """
    if len(outcome.terms) == 2:
        return outcome.terms
    missing = contrastive if "reconstruction" in outcome.terms else reconstruction
    device = batch.embeddings.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        both = outcome.terms | missing(denoiser, batch, settings).terms
    return {name: both[name] for name in ("reconstruction", "contrastive")}
