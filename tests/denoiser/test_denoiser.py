import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from dcr_hf import FrozenDenoiser
from helpers.tiny_models import CONDITION_WIDTH


@pytest.fixture(scope="module")
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder))


@pytest.fixture(scope="module")
def pipeline(sd_folder):
    return StableDiffusionPipeline.from_pretrained(sd_folder)


def pair_inputs(batch=3, conditions=5, side=4):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(batch, 4, side, side, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator)
    return noisy, timesteps, torch.randn(conditions, CONDITION_WIDTH, generator=generator)


def value_and_gradient(denoiser, chunk, method="predict_pairs", inputs=None):
    noisy, timesteps, conditions = inputs or pair_inputs()
    conditions = conditions.clone().requires_grad_()
    denoiser.pair_chunk_size = chunk
    predictions = getattr(denoiser, method)(noisy, timesteps, conditions)
    # A loss that weighs every prediction differently.
    weights = torch.randn(predictions.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((predictions * weights).sum(), conditions)
    return predictions.detach(), gradient


@pytest.mark.parametrize("chunk", [1, 4, 14, 15, 99])
def test_chunks_change_neither_values_nor_gradients(denoiser, chunk):
    expected, expected_gradient = value_and_gradient(denoiser, 0)
    found, gradient = value_and_gradient(denoiser, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_odd_latents(denoiser):
    inputs = pair_inputs(batch=2, conditions=3, side=7)
    expected, expected_gradient = value_and_gradient(denoiser, 0, inputs=inputs)
    found, gradient = value_and_gradient(denoiser, 4, inputs=inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def saved_bytes(denoiser, chunk):
    """Bytes of distinct storages that autograd keeps between the forward and the backward pass."""
    noisy, timesteps, conditions = pair_inputs()
    denoiser.pair_chunk_size = chunk
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predictions = denoiser.predict_pairs(noisy, timesteps, conditions.requires_grad_())
    assert predictions.requires_grad
    weights = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_chunks_keep_little_between_forward_and_backward(denoiser):
    # The last chunk, one pair of fifteen here, keeps its activations.
    assert saved_bytes(denoiser, 1) < saved_bytes(denoiser, 0) / 10


def test_predict_is_the_diagonal_of_the_pairs(denoiser):
    inputs = pair_inputs(batch=4, conditions=4)
    pairs, _ = value_and_gradient(denoiser, 0, inputs=inputs)
    found, _ = value_and_gradient(denoiser, 3, "predict", inputs)
    torch.testing.assert_close(found, torch.stack([pairs[i, i] for i in range(4)]), rtol=1e-5, atol=1e-6)


def test_evaluations_are_counted_without_recomputations(denoiser):
    before = denoiser.evaluations
    value_and_gradient(denoiser, 4)
    value_and_gradient(denoiser, 4, "predict", pair_inputs(batch=5, conditions=5))
    assert denoiser.evaluations - before == 3 * 5 + 5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_the_schedulers(sd_folder, sd_v_folder, prediction_type):
    folder = {"epsilon": sd_folder, "v_prediction": sd_v_folder}[prediction_type]
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    latents, noise = torch.randn(2, 3, 4, 4, 4).unbind()
    timesteps = torch.tensor([0, 500, 999])
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(denoiser.add_noise(latents, noise, timesteps), noisy)
    native = noise if prediction_type == "epsilon" else velocity
    torch.testing.assert_close(denoiser.target(latents, noise, timesteps), native)
    # A perfect prediction is the noise, whichever kind of prediction it is.
    torch.testing.assert_close(denoiser.as_noise(native, noisy, timesteps), noise)

    released = FrozenDenoiser.from_pretrained(str(folder), noise_target="velocity")
    torch.testing.assert_close(released.target(latents, noise, timesteps), velocity)


def test_latents_are_the_vaes_scaled(denoiser, pipeline):
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    found = denoiser.encode(images)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = pipeline.vae.encode(images * 2 - 1).latent_dist.sample() * pipeline.vae.config.scaling_factor
    assert found.shape == (2, 4, 4, 4)
    torch.testing.assert_close(found, expected)


def test_it_is_frozen_and_has_dropped_its_text_encoder(denoiser):
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())
    assert {name.split(".")[0] for name, _ in denoiser.named_parameters()} == {"unet", "vae"}
    assert not denoiser.unet.training


def test_it_computes_in_its_own_dtype(sd_folder, denoiser):
    inputs = pair_inputs()
    denoiser.pair_chunk_size = 0
    expected = denoiser.predict_pairs(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(denoiser.predict_pairs(*inputs), expected, rtol=0, atol=0)
    half = FrozenDenoiser.from_pretrained(str(sd_folder), dtype=torch.bfloat16)
    rounded = half.predict_pairs(*inputs)
    assert half.unet.dtype == torch.bfloat16 and rounded.dtype == torch.float32
    assert 0 < (rounded - expected).norm() / expected.norm() < 0.05
