"""Chunks: out of memory, they continue in halves with the same numbers; what is kept and what is recomputed."""

import logging

import pytest
import torch

from dcr_hf.denoiser.chunks import ChunkPlan, predict_in_chunks

PAIRS, WIDTH = 11, 3


class Evaluation:
    """A small function of a pair that runs out of memory when it sees too many pairs, and counts what it does."""

    def __init__(self, fits=PAIRS, fits_with_graph=PAIRS, error=None):
        self.error = error or torch.OutOfMemoryError("for the test")
        self.fits, self.fits_with_graph = fits, fits_with_graph
        self.latents = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
        self.pairs = self.with_graph = 0
        self.shapes = set()

    def __call__(self, rows, conditions):
        limit = self.fits_with_graph if torch.is_grad_enabled() else self.fits
        if len(rows) > limit:
            raise self.error
        self.pairs += len(rows)
        self.with_graph += len(rows) * torch.is_grad_enabled()
        self.shapes.add(len(rows))
        return (self.latents[rows] * conditions).tanh() * conditions.sum(dim=1, keepdim=True)


def run(evaluation, plan, pad=False):
    rows = torch.arange(PAIRS) % 4
    conditions = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = predict_in_chunks(evaluation, rows, conditions, plan, pad)
    gradient = torch.autograd.grad(outputs.sin().sum(), conditions)[0]
    return outputs.detach(), gradient


@pytest.fixture
def expected():
    evaluation = Evaluation()
    rows = torch.arange(PAIRS) % 4
    conditions = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    outputs = evaluation(rows, conditions)
    return outputs.detach(), torch.autograd.grad(outputs.sin().sum(), conditions)[0]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("plan", [ChunkPlan(PAIRS), ChunkPlan(100), ChunkPlan(4), ChunkPlan(4, kept=2), ChunkPlan(1)])
@pytest.mark.parametrize("pad", [False, True])
def test_chunks_change_no_value_and_no_gradient(plan, pad, expected):
    assert_same(run(Evaluation(), plan, pad), expected)


@pytest.mark.parametrize("size, kept, recomputed", [(11, 1, 0), (4, 1, 8), (4, 2, 4), (4, 3, 0)])
def test_only_what_is_not_kept_is_computed_twice(size, kept, recomputed):
    evaluation = Evaluation()
    run(evaluation, ChunkPlan(size, kept))
    assert evaluation.pairs == PAIRS + recomputed
    assert evaluation.with_graph == PAIRS


def test_without_gradients_nothing_is_kept():
    evaluation = Evaluation()
    conditions = torch.ones(PAIRS, WIDTH)
    assert not predict_in_chunks(
        evaluation, torch.zeros(PAIRS, dtype=torch.long), conditions, ChunkPlan(4)
    ).requires_grad
    with torch.no_grad():
        predict_in_chunks(evaluation, torch.zeros(PAIRS, dtype=torch.long), conditions.requires_grad_(), ChunkPlan(4))
    assert evaluation.with_graph == 0


def test_padding_shows_the_function_one_shape_only():
    evaluation = Evaluation()
    run(evaluation, ChunkPlan(4), pad=True)
    assert evaluation.shapes == {4}


@pytest.mark.parametrize("fits, fits_with_graph", [(3, 3), (PAIRS, 2), (3, 1), (1, 1)])
def test_out_of_memory_goes_on_in_halves_and_says_so(fits, fits_with_graph, expected, caplog):
    plan = ChunkPlan(8, kept=1)
    with caplog.at_level(logging.WARNING):
        assert_same(run(Evaluation(fits, fits_with_graph), plan), expected)
    assert plan.size <= min(fits, fits_with_graph)
    assert f"Start with that by --pair_chunk_size {plan.size}." in caplog.text
    # The next step starts with the lower size and does not fail.
    caplog.clear()
    assert_same(run(Evaluation(fits, fits_with_graph), plan), expected)
    assert not caplog.records


@pytest.mark.parametrize(
    "words", ["CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED when calling", "CUDA error: out of memory"]
)
def test_a_library_without_memory_is_out_of_memory_too(expected, words):
    plan = ChunkPlan(8, kept=1)
    assert_same(run(Evaluation(3, 3, RuntimeError(words)), plan), expected)
    assert plan.size <= 3


def test_any_other_error_stays_one():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(Evaluation(3, 3, RuntimeError("CUDA error: an illegal memory access")), ChunkPlan(8, kept=1))


def test_out_of_memory_in_the_backward_pass_alone(expected, caplog):
    """The complete forward pass fits, and its last chunk keeps a graph; only recomputing the others does not fit."""
    evaluation = Evaluation(fits_with_graph=5)
    plan = ChunkPlan(6, kept=1)  # chunks of six, which will be recomputed, and of five
    with caplog.at_level(logging.WARNING):
        assert_same(run(evaluation, plan), expected)
    assert plan.size == 3 and "chunks of 6 pairs: continuing with 3" in caplog.text


def test_one_pair_that_does_not_fit_is_an_error_with_advice():
    with pytest.raises(torch.OutOfMemoryError) as error:
        run(Evaluation(0, 0), ChunkPlan(4))
    assert "--gradient_checkpointing" in "".join(error.value.__notes__)
