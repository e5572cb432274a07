"""The paper's second theorem for this loss: where its limit holds, and where not. docs/diagnostics.md derives both.

It says: with well separated negatives the loss is a scaled reconstruction loss plus a constant, so that the gradients
are parallel. Reconstruction is here that of directions, 1 - s, which is half the squared distance at unit length.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcr_hf.objectives.losses import cosines, dcr_cosines, dcr_loss, multi_positive_info_nce

B, PIXELS, C = 8, 512, 64


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def beside(anchors: Tensor, cosine: float, seed: int) -> Tensor:
    """Unit vectors at this cosine to the anchors (B, N)."""
    anchors = F.normalize(anchors, dim=-1)
    other = random(*anchors.shape, seed=seed)
    other = F.normalize(other - (other * anchors).sum(dim=-1, keepdim=True) * anchors, dim=-1)
    return cosine * anchors + math.sqrt(1 - cosine**2) * other


def against_reconstruction(step: float, to_target: float, temperature: float = 0.1):
    """Cosine and ratio of both gradients with respect to the conditions, for a denoiser that is linear in them.

    Conditions are random: other images' predictions stand nearly at right angles to an image's own.

    Args:
        step: how far the view's condition is from the own, in units of the own one's length.
        to_target: cosine between an image's own prediction and its target.

    Returns:
        the cosine, the ratio, the loss.
    """
    denoiser = random(B, PIXELS, C, seed=0)
    conditions = random(B, C, seed=1).requires_grad_()
    predictions = torch.einsum("inc,jc->ijn", denoiser, conditions)
    views = torch.einsum("inc,ic->in", denoiser, conditions + step * random(B, C, seed=2))
    target = beside(predictions.detach().diagonal().movedim(-1, 0), to_target, seed=3)
    positives, negatives = dcr_cosines(predictions, views, target)
    assert negatives.abs().max() < 0.4
    losses = dcr_loss(predictions, views, target, temperature), (1 - positives[:, 1]).mean()
    ours, reconstruction = (torch.autograd.grad(loss, conditions, retain_graph=True)[0].flatten() for loss in losses)
    cosine = F.cosine_similarity(ours, reconstruction, dim=0).item()
    return cosine, (ours.norm() / reconstruction.norm()).item(), losses[0].item()


@pytest.mark.parametrize("to_target", [0.1, 0.5, 0.8])
def test_it_holds_where_the_view_is_predicted_as_the_image_itself(to_target):
    """Then s(a, P+) = 1 has no gradient, and with the negatives gone L = log 2 cosh((1 - s) / 2T)."""
    cosine, scale, loss = against_reconstruction(step=0.0, to_target=to_target)
    assert cosine > 0.999
    assert scale == pytest.approx(5 * math.tanh((1 - to_target) / 0.2), rel=0.01)
    assert loss == pytest.approx(math.log(2 * math.cosh((1 - to_target) / 0.2)), rel=0.01)


def test_it_is_lost_as_the_view_moves_away():
    """Negatives are as far as before; the cosines to the view's prediction are 1, 0.996, 0.91 and 0.73."""
    cosines_of = [against_reconstruction(step, to_target=0.8)[0] for step in (0.0, 0.1, 0.5, 1.0)]
    assert cosines_of == sorted(cosines_of, reverse=True)
    assert cosines_of[1] > 0.99 and cosines_of[2] < 0.9 and cosines_of[3] < 0


def with_negatives(count: int, temperature: float, s_view: float = 0.9, s_target: float = 0.8):
    """Gradients with respect to an anchor, whose negatives stand at right angles to it and to each other, nearly."""
    pixels = 4096
    anchor = random(1, pixels, seed=0).requires_grad_()
    both = torch.stack([beside(anchor.detach(), s, seed=n) for n, s in ((1, s_view), (2, s_target))], dim=1)
    positives, negatives = cosines(anchor, both), cosines(anchor, random(1, count, pixels, seed=3))
    loss, reconstruction = multi_positive_info_nce(positives, negatives, temperature), (1 - positives).mean()
    ours, theirs = (
        torch.autograd.grad(term, anchor, retain_graph=True)[0].flatten() for term in (loss, reconstruction)
    )
    # The scaled reconstruction of view and target, plus a constant.
    limit = reconstruction / temperature - 1 / temperature + math.log(count)
    return F.cosine_similarity(ours, theirs, dim=0).item(), (loss - limit).item()


def test_it_holds_where_many_unrelated_negatives_outweigh_the_positives():
    """M >> 2 exp(s / T), and M random directions nearly cancel each other."""
    cosine, difference = with_negatives(count=3000, temperature=1.0)
    assert cosine > 0.99
    assert 0 < difference < 0.01
    fewer, _ = with_negatives(count=100, temperature=1.0)
    assert fewer < cosine


def test_it_does_not_hold_for_the_papers_batch_and_temperature():
    """The positives then outweigh 15 negatives: exp(9) + exp(8) = 11,084 to 15."""
    cosine, difference = with_negatives(count=15, temperature=0.1)
    assert cosine < 0.5
    assert difference > 6


@pytest.mark.parametrize(
    ("of_negatives", "expected"),
    [
        # Z = e^9 + e^8 + 15 e^(10 n), and the gradient is -10 (1/2 - e^(10 s) / Z): of 8,103 and 2,981
        (-1.0, (2.31, -2.31)),  # of Z = 11,084: with the negatives gone, the two only pull against each other
        (0.5, (1.09, -2.76)),  # of Z = 13,310
        (0.9, (-4.39, -4.78)),  # of Z = 132,631: negatives as near as the positives, both are drawn near
    ],
)
def test_separated_negatives_leave_the_positives_competing(of_negatives, expected):
    """The nearer positive is pushed away once the negatives are: the limit is log 2 cosh((s1 - s2) / 2T)."""
    positives = torch.tensor([[0.9, 0.8]], dtype=torch.float64, requires_grad=True)
    negatives = torch.full((1, 15), of_negatives, dtype=torch.float64)
    loss = multi_positive_info_nce(positives, negatives, 0.1)
    (gradient,) = torch.autograd.grad(loss, positives)
    assert gradient[0].tolist() == pytest.approx(expected, abs=0.005)
    if of_negatives == -1:
        assert loss.item() == pytest.approx(math.log(2 * math.cosh(0.5)), abs=1e-6)
