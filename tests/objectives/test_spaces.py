"""Where the contrast is made: each space against its definition, and where a level of signal or noise is 0."""

import pytest
import torch
from torch.nn import functional as F

from dcr_hf import FrozenDenoiser, dcr_loss
from dcr_hf.objectives import Diffused, Negatives, Settings, dcr
from helpers.runs import batch_of_conditions, diffused_at_random
from helpers.tiny_models import CONDITION_WIDTH

B = 4


@pytest.fixture(params=["epsilon", "velocity"])
def denoiser(request, sd_folder, sd_v_folder):
    return FrozenDenoiser.from_pretrained(str({"epsilon": sd_folder, "velocity": sd_v_folder}[request.param]))


@pytest.fixture
def inputs(denoiser):
    conditions, views = torch.randn(2, B, CONDITION_WIDTH, generator=torch.Generator().manual_seed(1))
    return diffused_at_random(denoiser, B), conditions.requires_grad_(), views.requires_grad_()


def defined(space, denoiser, diffused, predictions):
    """Predictions (B, M, ...) in a space, by its textbook formula."""
    n, t = diffused.noisy_latents[:, None], diffused.timesteps
    abar = denoiser.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1, 1)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    if denoiser.native_target == "epsilon":
        sample = (n - s * predictions) / a
        velocity = a * predictions - s * sample
    else:
        sample, velocity = a * n - s * predictions, predictions
    empty = denoiser.predict(diffused.noisy_latents, t, torch.zeros(B, CONDITION_WIDTH)).detach()[:, None]
    return {"model": predictions, "sample": sample, "velocity": velocity, "residual": predictions - empty}[space]


def plain(space, denoiser, diffused, conditions, views, detach):
    predictions = denoiser.predict_pairs(diffused.noisy_latents, diffused.timesteps, conditions)
    if detach:
        own = torch.eye(B, dtype=torch.bool)[:, :, None, None, None]
        predictions = torch.where(own, predictions, predictions.detach())
    view = denoiser.predict(diffused.noisy_latents, diffused.timesteps, views)
    return dcr_loss(
        defined(space, denoiser, diffused, predictions),
        defined(space, denoiser, diffused, view[:, None])[:, 0],
        defined(space, denoiser, diffused, diffused.target[:, None])[:, 0],
    )


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("space", ["model", "velocity", "sample", "residual"])
def test_each_space_is_the_papers_loss_on_transformed_predictions(denoiser, inputs, space, detach):
    expected = plain(space, denoiser, *inputs, detach)
    before = denoiser.evaluations
    settings = Settings(space=space, negatives=Negatives(detach=detach))
    outcome = dcr(denoiser, batch_of_conditions(*inputs), settings)
    assert denoiser.evaluations - before == B * B + B + (B if space == "residual" else 0)
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(
        torch.autograd.grad(outcome.loss, inputs[1:]),
        torch.autograd.grad(expected, inputs[1:]),
        strict=True,
    ):
        assert wanted.norm() > 1e-6
        assert (found - wanted).norm() < 2e-3 * wanted.norm()


def test_spaces_differ(denoiser, inputs):
    found = {
        space: dcr(denoiser, batch_of_conditions(*inputs), Settings(space=space)).loss.item()
        for space in ("model", "velocity", "sample", "residual")
    }
    # A velocity model's own prediction is the velocity.
    assert len({round(loss, 5) for loss in found.values()}) == (4 if denoiser.native_target == "epsilon" else 3)


def test_sampled_negatives_in_another_space(denoiser, inputs):
    before = denoiser.evaluations
    dcr(denoiser, batch_of_conditions(*inputs), Settings(space="residual", negatives=Negatives(count=2)))
    assert denoiser.evaluations - before == B * (2 + 2) + B


@pytest.mark.parametrize("alpha_bar", [0.0, 1e-7, 1 - 1e-7, 1.0])
@pytest.mark.parametrize("space", ["velocity", "sample", "residual"])
def test_no_level_of_noise_is_too_high_or_too_low(denoiser, inputs, space, alpha_bar):
    diffused, conditions, views = inputs
    denoiser.alphas_cumprod.fill_(alpha_bar)
    t = diffused.timesteps
    noisy = denoiser.add_noise(diffused.latents, diffused.noise, t)
    target = denoiser.target(diffused.latents, diffused.noise, t)
    diffused = Diffused(diffused.latents, noisy, t, diffused.noise, target)
    loss = dcr(denoiser, batch_of_conditions(diffused, conditions, views), Settings(space=space)).loss
    gradients = torch.autograd.grad(loss, (conditions, views))
    assert 0 < loss < 30
    assert all(gradient.isfinite().all() and gradient.norm() < 100 for gradient in gradients)


def test_the_empty_condition_has_no_residual_and_no_endless_gradient(denoiser, inputs):
    diffused, _, views = inputs
    nothing = torch.zeros(B, CONDITION_WIDTH, requires_grad=True)
    loss = dcr(denoiser, batch_of_conditions(diffused, nothing, views), Settings(space="residual")).loss
    [gradient] = torch.autograd.grad(loss, nothing)
    assert loss.isfinite() and gradient.isfinite().all()


def test_the_residual_logs_what_the_denoiser_makes_of_no_condition(denoiser, inputs):
    diffused = inputs[0]
    metrics = dcr(denoiser, batch_of_conditions(*inputs), Settings(space="residual")).metrics
    empty = denoiser.predict(diffused.noisy_latents, diffused.timesteps, torch.zeros(B, CONDITION_WIDTH))
    noise = denoiser.as_noise(empty, diffused.noisy_latents, diffused.timesteps)
    torch.testing.assert_close(metrics["noise_mse/empty"], F.mse_loss(noise, diffused.noise))
