"""Fewer, detached and gathered negatives: what is contrasted, what gets a gradient, what it costs."""

import pytest
import torch

from dcr_hf import DCRConfig, FrozenDenoiser, dcr_loss
from dcr_hf.objectives import Negatives, Settings, dcr
from dcr_hf.objectives.negatives import choose_negatives
from helpers.programs import TORCHRUN, WORKERS, run_program
from helpers.runs import batch_of_conditions, diffused_at_random
from helpers.tiny_models import CONDITION_WIDTH
from helpers.workers.gather_worker import BATCH, projector, step


@pytest.fixture
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder))


@pytest.fixture
def batch(denoiser):
    conditions, views = torch.randn(2, 5, CONDITION_WIDTH, generator=torch.Generator().manual_seed(0))
    return diffused_at_random(denoiser, 5), conditions.requires_grad_(), views.requires_grad_()


def plain(denoiser, batch, detach=False):
    """`dcr_loss` on all pairs, and its gradients."""
    diffused, conditions, views = batch
    predictions = denoiser.predict_pairs(diffused.noisy_latents, diffused.timesteps, conditions)
    if detach:
        own = torch.eye(5, dtype=torch.bool)[:, :, None, None, None]
        predictions = torch.where(own, predictions, predictions.detach())
    view_predictions = denoiser.predict(diffused.noisy_latents, diffused.timesteps, views)
    loss = dcr_loss(predictions, view_predictions, diffused.target)
    return loss, *torch.autograd.grad(loss, (conditions, views))


def found(denoiser, batch, negatives):
    diffused, conditions, views = batch
    before = denoiser.evaluations
    outcome = dcr(denoiser, batch_of_conditions(diffused, conditions, views), Settings(negatives=negatives))
    gradients = torch.autograd.grad(outcome.loss, (conditions, views))
    return outcome.loss, *gradients, outcome.metrics, denoiser.evaluations - before


def assert_close(some, others):
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_by_default_it_is_the_papers_loss_on_all_pairs(denoiser, batch):
    *values, _, evaluations = found(denoiser, batch, Negatives())
    assert_close(values, plain(denoiser, batch))
    assert evaluations == 5 * 5 + 5


def test_as_many_sampled_negatives_as_there_are_is_the_same_loss(denoiser, batch):
    *values, _, evaluations = found(denoiser, batch, Negatives(count=4))
    assert_close(values, plain(denoiser, batch))
    assert evaluations == 5 * 5 + 5


def test_detached_negatives_get_no_gradient(denoiser, batch):
    *values, _, evaluations = found(denoiser, batch, Negatives(detach=True))
    assert_close(values, plain(denoiser, batch, detach=True))
    assert evaluations == 5 * 5 + 5
    # Which is another gradient than the paper's, not only a cheaper one.
    assert (values[1] - plain(denoiser, batch)[1]).norm() > 0.01 * values[1].norm()


def test_detached_negatives_have_no_backward_pass(denoiser, batch):
    passes = []
    denoiser.unet.conv_out.register_full_backward_hook(lambda module, _, gradient: passes.append(len(gradient[0])))
    found(denoiser, batch, Negatives())
    found(denoiser, batch, Negatives(detach=True))
    assert passes == [5 * 6, 5 * 2]


def test_fewer_negatives_cost_fewer_evaluations_and_are_drawn_anew(denoiser, batch):
    torch.manual_seed(0)
    losses = set()
    for _ in range(5):
        *values, metrics, evaluations = found(denoiser, batch, Negatives(count=2))
        assert evaluations == 5 * (2 + 2)
        losses.add(values[0].item())
    assert len(losses) > 1
    assert metrics["cosine/hardest_negative"] >= metrics["cosine/negative"]


@pytest.mark.parametrize("first, total", [(0, 6), (3, 6)])
def test_no_image_is_its_own_negative_nor_has_one_twice(first, total):
    own = first + torch.arange(3)[:, None]
    every = choose_negatives(own, total, None)
    assert [sorted(row) for row in every.tolist()] == [sorted({*range(total)} - {i}) for i in own.flatten().tolist()]
    torch.manual_seed(0)
    drawn = torch.stack([choose_negatives(own, total, 3) for _ in range(200)])  # (200, 3, 3)
    for row, image in enumerate(own.flatten().tolist()):
        assert all(len({*some}) == 3 and image not in some for some in drawn[:, row].tolist())
        # Each of five others is drawn in 3 of 5 draws.
        counts = drawn[:, row].flatten().bincount(minlength=total)
        assert all(90 < counts[other] < 150 for other in range(total) if other != image)


@pytest.fixture(scope="module")
def two_ranks(sd_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("gather")
    worker = WORKERS / "gather_worker.py"
    done = run_program(*TORCHRUN, worker, sd_folder, output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.parametrize("detach", [False, True])
def test_gathered_conditions_train_like_one_process_with_the_joined_batch(two_ranks, denoiser, detach):
    records = [torch.load(two_ranks / f"detach{detach}-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    joined = step(projector(denoiser), denoiser, [0, 1], Negatives(detach=detach))
    assert joined["evaluations"] == (2 * BATCH) * (2 * BATCH) + 2 * BATCH
    assert [record["evaluations"] for record in records] == [joined["evaluations"] // 2] * 2
    torch.testing.assert_close((records[0]["loss"] + records[1]["loss"]) / 2, joined["loss"])
    for record in records:
        for found, expected in zip(record["gradients"], joined["gradients"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def config(tmp_path, **options):
    return DCRConfig(output_dir=str(tmp_path), per_device_train_batch_size=16, use_cpu=True, **options)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (272, 0)),
        ({"num_negatives": 4}, (96, 0)),
        ({"detach_negatives": True}, (32, 240)),
        ({"num_negatives": 4, "detach_negatives": True}, (32, 64)),
    ],
)
def test_evaluations_that_are_announced(tmp_path, options, expected):
    assert config(tmp_path, **options).unet_evaluations == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_negatives": 16}, "--num_negatives is 16; each image has 15 others"),
        ({"num_negatives": 0}, "--num_negatives is 0"),
        ({"gather_conditions": True}, "--gather_conditions takes negatives from other ranks"),
        ({"pair_chunk_size": "some"}, "--pair_chunk_size is some"),
        ({"pair_chunk_size": -2}, "--pair_chunk_size is -2"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
