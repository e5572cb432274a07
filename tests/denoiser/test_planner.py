"""The planner: its arithmetic by hand, its measurement against autograd's own, and the memory of a complete step."""

import pytest
import torch

from dcr_hf import FrozenDenoiser
from dcr_hf.denoiser.chunks import ChunkPlan
from dcr_hf.denoiser.planner import CPU_BUDGET, LiveBytes, PairMemory, choose_plan, measure, memory_budget, slope
from helpers.tiny_models import CONDITION_WIDTH

PAIR = PairMemory(saved=10, working=5)


@pytest.mark.parametrize(
    "pairs, budget, expected",
    [
        (272, 10_000, ChunkPlan(272, 1)),  # 272 * 15 = 4,080 fits at once
        (272, 4_079, ChunkPlan(136, 2)),  # not quite at once, but all activations and a smaller chunk's work do
        # 39 pairs: (1000 - 195) // 390 = 2 chunks are kept, 5 * 39 = 195 pairs recomputed. 34 pairs: also 2, and 6 *
        # 34 = 204. 46 and 55 pairs: one, and 5 * 46 = 230 or 4 * 55 = 220.
        (272, 1_000, ChunkPlan(39, 2)),
        # 32 at once. 28 pairs: (480 - 140) // 280 = 1 chunk, 9 * 28 = 252; 21 pairs: (480 - 105) // 210 = 1; 20:
        # (480 - 100) // 200 = 1; 19: (480 - 95) // 190 = 2, 13 * 19 = 247; 18 and 17: 2, 14 * 18 = 252 and 14 * 17
        # = 238; 16: (480 - 80) // 160 = 2, 15 * 16 = 240. So 17.
        (272, 480, ChunkPlan(17, 2)),
        (272, 15, ChunkPlan(1, 1)),
        (272, 0, ChunkPlan(1, 1)),  # nothing fits: tries one pair
        (6, 10_000, ChunkPlan(6, 1)),
        (6, 75, ChunkPlan(3, 2)),
    ],
)
def test_plans_by_hand(pairs, budget, expected):
    assert choose_plan(pairs, PAIR, budget) == expected


def test_a_plan_never_needs_more_than_its_budget():
    for pairs in (2, 20, 272, 1040):
        for budget in range(15, 20 * pairs, 7):
            plan = choose_plan(pairs, PAIR, budget)
            assert plan.size * plan.kept * PAIR.saved + plan.size * PAIR.working <= budget, (pairs, budget, plan)


def test_live_bytes_counts_what_lives_and_what_lived():
    with LiveBytes() as live:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + 1
        view = b[::2]
        assert live.now == 8000
        del a, b
        assert live.now == 4000  # the view keeps its storage
        del view
        torch.ones(10).add_(1)
    assert live.now == 0 and live.peak == 8000


@pytest.fixture
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder))


def pairs_of(denoiser, batch, conditions, side=8):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(batch, 4, side, side, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    return noisy, timesteps, torch.randn(conditions, CONDITION_WIDTH, generator=generator).requires_grad_()


def test_measured_activations_are_what_autograd_keeps(denoiser):
    noisy, timesteps, conditions = pairs_of(denoiser, 4, 4)
    evaluate, biases = denoiser._fast_path(noisy, timesteps, conditions)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = evaluate(torch.arange(4), biases.detach().requires_grad_())
    frozen = {tensor.untyped_storage().data_ptr() for tensor in (*denoiser.parameters(), *denoiser.buffers())}
    expected = sum(size for pointer, size in saved.items() if pointer not in frozen) + outputs.nbytes
    memory = measure(evaluate, torch.arange(4), biases)
    assert memory.saved * 4 == pytest.approx(expected, rel=0.03)
    assert 0 < memory.working < memory.saved


def test_a_planned_step_stays_in_its_budget_and_changes_nothing(denoiser, monkeypatch):
    inputs = pairs_of(denoiser, 8, 9)

    def step():
        with LiveBytes() as live:
            predictions = denoiser.predict_pairs(*inputs)
            gradient = torch.autograd.grad(predictions.sin().sum(), inputs[-1])[0]
        return predictions.detach(), gradient, live.peak

    expected, expected_gradient, full_peak = step()
    peaks, sizes = [], []
    for share in (0.5, 0.2):
        monkeypatch.setattr(
            "dcr_hf.denoiser.planner.memory_budget", lambda device, share=share: int(share * full_peak)
        )
        denoiser.pair_chunk_size = "auto"
        denoiser.reset_chunk_plans()
        step()  # measures
        found, gradient, peak = step()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
        # Outside the budget, and small: predictions, their gradients, the latents' beginnings.
        assert peak < (share + 0.05) * full_peak
        plan = next(iter(denoiser._plans.values()))
        peaks.append(peak)
        sizes.append(plan.size * plan.kept)
    assert sizes[0] > sizes[1] and peaks[0] > peaks[1] > 0.1 * full_peak


def test_chunks_of_a_step_take_a_quarter_of_the_memory(denoiser):
    inputs = pairs_of(denoiser, 16, 17)
    peaks = {}
    for chunk in (0, 32):
        denoiser.pair_chunk_size = chunk
        with LiveBytes() as live:
            torch.autograd.grad(denoiser.predict_pairs(*inputs).square().sum(), inputs[-1])
        peaks[chunk] = live.peak
    assert peaks[32] < peaks[0] / 4


def test_on_a_cpu_the_plan_is_the_same_every_time(denoiser):
    assert memory_budget(torch.device("cpu")) == CPU_BUDGET
    plans = []
    for _ in range(2):
        denoiser.pair_chunk_size = "auto"
        denoiser.reset_chunk_plans()
        denoiser.predict_pairs(*pairs_of(denoiser, 3, 4))
        plans.append(dict(denoiser._plans))
    assert plans[0] == plans[1] and list(plans[0].values()) == [ChunkPlan(12, 1)]


def test_conditions_with_tokens_of_their_own_are_measured_apart(denoiser, monkeypatch):
    measured = []

    def plan(evaluate, rows, brought):
        measured.append(tuple(brought.shape))
        return ChunkPlan(len(rows))

    monkeypatch.setattr("dcr_hf.denoiser.frozen.make_plan", plan)
    denoiser.pair_chunk_size = "auto"
    denoiser.reset_chunk_plans()
    noisy, timesteps, conditions = pairs_of(denoiser, 2, 2)
    for count in (1, 9, 1):
        with_tokens = denoiser.with_tokens(conditions, torch.ones(2, count, CONDITION_WIDTH))
        denoiser.predict_pairs(noisy, timesteps, with_tokens)
    assert measured == [(4, 78, CONDITION_WIDTH), (4, 86, CONDITION_WIDTH)]


def test_measuring_is_no_evaluation(denoiser):
    denoiser.pair_chunk_size = "auto"
    denoiser.predict_pairs(*pairs_of(denoiser, 3, 4))
    assert denoiser.evaluations == 12


def test_what_all_pairs_share_is_no_pairs():
    """8 MB of workspaces, 3 MB saved and 2 MB more a pair."""
    few, more = ((pairs * 3 + 8, pairs * 3 + 8 + pairs * 2 + 1) for pairs in (4, 8))
    assert slope(few, more, 4, 8) == PairMemory(saved=3, working=2)
    assert slope(few, few, 4, 4) == PairMemory(saved=5, working=3)  # no more pairs than 4: what they took


def test_a_gpu_takes_no_small_chunks_where_larger_ones_fit():
    memory = PairMemory(1, 0)
    assert choose_plan(256, memory, 250, small=64).size >= 64
    assert choose_plan(256, memory, 250, small=1).size < 64  # which recomputes less
