import math

import pytest
import torch

from dcr_hf import dcr_loss
from dcr_hf.objectives.losses import dcr_cosines


def plain_loss(predictions, view_predictions, target, temperature=0.1):
    """The formula as the paper writes it: exp, ratio, log, one pair at a time."""
    total = 0
    for i in range(len(target)):
        anchor = predictions[i, i].flatten()

        def similarity(other, anchor=anchor):
            cosine = torch.nn.functional.cosine_similarity(anchor, other.flatten(), dim=0)
            return torch.exp(cosine / temperature)

        positives = [similarity(view_predictions[i]), similarity(target[i])]
        negatives = [similarity(predictions[i, j]) for j in range(len(target)) if j != i]
        denominator = sum(positives) + sum(negatives)
        total = total + sum(-torch.log(positive / denominator) for positive in positives) / 2
    return total / len(target)


def random_inputs(batch, shape=(4, 3, 3), dtype=torch.float64):
    generator = torch.Generator().manual_seed(batch)
    make = lambda *size: torch.randn(*size, generator=generator, dtype=dtype, requires_grad=True)  # noqa: E731
    return make(batch, batch, *shape), make(batch, *shape), make(batch, *shape)


def test_value_by_hand():
    # Two images, predictions in the plane. Anchors (1, 0) and (0, 1); views alike; targets at 60 degrees; each
    # negative orthogonal to its anchor. At T = 0.5: s / T is 2, 1 and 0.
    predictions = torch.tensor([[[1.0, 0], [0, 3]], [[2.0, 0], [0, 1]]])
    views = torch.tensor([[5.0, 0], [0, 5.0]])
    half, height = 0.5, math.sqrt(3) / 2
    target = torch.tensor([[half, height], [height, half]])
    denominator = math.exp(2) + math.exp(1) + math.exp(0)
    expected = -(math.log(math.exp(2) / denominator) + math.log(math.exp(1) / denominator)) / 2
    assert dcr_loss(predictions, views, target, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_equals_the_plain_ratio_in_value_and_gradients(batch):
    inputs = random_inputs(batch)
    plain, ours = plain_loss(*inputs), dcr_loss(*inputs)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=0)
    for expected, found in zip(torch.autograd.grad(plain, inputs), torch.autograd.grad(ours, inputs), strict=True):
        assert expected.abs().max() > 0  # negatives included
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_negatives_are_the_other_conditions_in_order():
    predictions, views, target = random_inputs(4)
    _, negatives = dcr_cosines(predictions, views, target)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        for column, j in enumerate(others):
            expected = torch.cosine_similarity(predictions[i, i].flatten(), predictions[i, j].flatten(), dim=0)
            torch.testing.assert_close(negatives[i, column], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    rounded = [tensor.detach().to(dtype) for tensor in random_inputs(5)]
    expected = dcr_loss(*[tensor.float() for tensor in rounded])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dcr_loss(*rounded)
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


def test_a_small_temperature_does_not_overflow():
    inputs = [tensor.detach().float() for tensor in random_inputs(5)]
    assert not plain_loss(*inputs, temperature=1e-3).isfinite()
    assert dcr_loss(*inputs, temperature=1e-3).isfinite()


@pytest.mark.parametrize("batch", [2, 7])
def test_candidates_that_look_alike_give_log_of_their_number(batch):
    same = torch.ones(batch, 6)
    assert dcr_loss(same.expand(batch, batch, 6), same, same).item() == pytest.approx(math.log(batch + 1), rel=1e-6)


def test_a_batch_of_one_is_an_error():
    with pytest.raises(ValueError, match="batch of 1 has no negatives"):
        dcr_loss(torch.ones(1, 1, 6), torch.ones(1, 6), torch.ones(1, 6))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 6\)"):
        dcr_loss(torch.ones(2, 3, 6), torch.ones(2, 6), torch.ones(2, 6))
