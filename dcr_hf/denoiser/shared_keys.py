"""Whether the device's attention takes keys that all pairs share, without a copy for each."""

import logging

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from dcr_hf.denoiser.fast_path import EmptyPromptAttention

logger = logging.getLogger(__name__)

PAIRS = 8
TOKENS = (784, 196, 49, 16)  # queries at each level for 28 x 28 latents
ALWAYS_RIGHT = 4e-3  # TF32 has steps of 1e-3


def choose_keys(unet: UNet2DConditionModel) -> None:
    """Let all layers share the keys and values of E where attention's values and gradients are right with them, else
    copy them for each pair; logs a copy. To be called when the UNet is on its device, in its dtype.

    A shared key has the stride 0 over pairs, which an attention kernel may refuse or misread. Draws no random number
    that anything else would.
    """
    layers = [module for module in unet.modules() if isinstance(module, EmptyPromptAttention)]
    if not layers or layers[0].key.is_meta:
        return
    shapes = {tuple(layer.key.shape): layer for layer in layers}
    faults = [fault for layer in shapes.values() for tokens in TOKENS if (fault := _fault(layer, tokens))]
    for layer in layers:
        layer.copies = bool(faults)
    if faults:
        logger.warning(
            f"Attention on {layers[0].key.device} does not take keys that all pairs share ({faults[0]}): they are "
            "copied for each pair, which takes more memory and time."
        )


def _fault(layer: EmptyPromptAttention, tokens: int) -> str | None:
    """What is wrong with attention to shared keys; None where it is as right as with copies."""
    try:
        shared = _errors(layer, tokens, copies=False)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    if all(error < ALWAYS_RIGHT for error in shared.values()):
        return None
    copied = _errors(layer, tokens, copies=True)  # in bfloat16 a few hundredths are rounding
    wrong = [f"{name} off by {error:.1e}" for name, error in shared.items() if not error < 1.5 * copied[name]]
    return f"{tokens} queries: {', '.join(wrong)}" if wrong else None  # NaN is wrong too


def _errors(layer: EmptyPromptAttention, tokens: int, copies: bool) -> dict[str, float]:
    """Relative errors of values and gradients, against float32 by hand."""
    heads, _, width = layer.key.shape
    device, dtype = layer.key.device, layer.key.dtype
    generator = torch.Generator(device).manual_seed(0)
    random = torch.randn(2, PAIRS, tokens, heads, width, generator=generator, device=device).to(dtype)
    query, weights = random.transpose(2, 3)
    layer.copies = copies
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        leaf, exact = query.clone().requires_grad_(), query.float().requires_grad_()
        found, expected = layer.attend(leaf), _by_hand(exact, layer.key.float(), layer.value.float())
        gradient = torch.autograd.grad(found, leaf, weights)[0]
        expected_gradient = torch.autograd.grad(expected, exact, weights.float())[0]
    return {"values": _distance(found, expected), "gradients": _distance(gradient, expected_gradient)}


def _by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without torch's own: query (P, heads, N, width), key and value (heads, 77, width)."""
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found.detach().float() - expected.detach()).norm() / expected.detach().norm()).item()
