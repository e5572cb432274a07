"""Operations and bytes on paper, against sums by hand."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def floor(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import floor

    return floor


def test_a_product_and_a_sum_by_hand(floor):
    costs = floor.Costs(rate=100, bandwidth=10)
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    one_row = torch.empty(1, 7, device="meta").expand(3, 7)
    with costs:
        product = a @ b
        product.T.view(7, 3) + one_row.T  # views cost nothing; an expanded tensor is read once
    assert costs.kinds["matrix product"] == [2 * 3 * 5 * 7, 4 * (15 + 35 + 21), 4 * (15 + 35 + 21) / 10]
    assert costs.kinds["elementwise"][:2] == [0, 4 * (21 + 7 + 21)]


def test_fused_attention_by_hand(floor):
    costs = floor.Costs(rate=1, bandwidth=1e9)
    query = torch.empty(2, 3, 11, 4, device="meta", requires_grad=True)
    key, value = (torch.empty(1, 3, 7, 4, device="meta").expand(2, -1, -1, -1) for _ in "kv")
    with costs:
        output = floor.fused_attention(costs)(query, key, value)
        torch.autograd.grad(output, query, torch.empty_like(output))
    product = 2 * 2 * 3 * 11 * 7 * 4
    queries, keys = 4 * 2 * 3 * 11 * 4, 4 * 3 * 7 * 4
    # Two products forward, five backward; the scores are never written.
    assert costs.kinds["attention"][:2] == [7 * product, 2 * queries + 2 * keys + 4 * queries + 2 * keys]
    assert output.shape == F.scaled_dot_product_attention(query, key, value).shape


def test_the_unet_is_counted_with_its_backward_pass(floor):
    costs = floor.Costs(rate=7e14, bandwidth=3e12)
    floor.unet_costs(costs, side=28, batch=2, conditions=17)
    operations = sum(kind[0] for kind in costs.kinds.values()) / 34
    # 267.3e9 a pair for 17 conditions of a latent, and what fused attention computes twice.
    assert 267e9 < operations < 1.02 * 267.3e9
    assert set(costs.kinds) == {*floor.KINDS, "elementwise"}
