"""Keys that all pairs share are handed to attention without a copy, unless the device's attention fails with them."""

import pytest
import torch
from torch.nn import functional as F

from dcr_hf import FrozenDenoiser
from dcr_hf.denoiser.fast_path import EmptyPromptAttention
from helpers.tiny_models import CONDITION_WIDTH

ATTENTION = F.scaled_dot_product_attention


def refuses(query, key, value):
    raise RuntimeError("stride 0 is not supported\nfor this kernel")


def misreads(query, key, value):
    return ATTENTION(query, key.roll(1, dims=2), value)


def misreads_backward(query, key, value):
    right, wrong = ATTENTION(query.detach(), key, value), ATTENTION(query, key, 2 * value)
    return right + wrong - wrong.detach()


def gives_nan(query, key, value):
    return ATTENTION(query, key, value) * float("nan")


def broken_for_shared_keys(fault):
    def attention(query, key, value, **options):
        return fault(query, key, value) if key.stride(0) == 0 else ATTENTION(query, key, value, **options)

    return attention


def layers_of(denoiser):
    return [module for module in denoiser.unet.modules() if isinstance(module, EmptyPromptAttention)]


def predictions_and_gradient(denoiser):
    generator = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3, 700])
    conditions = torch.randn(3, CONDITION_WIDTH, generator=generator).requires_grad_()
    predictions = denoiser.predict_pairs(noisy, timesteps, conditions)
    return predictions.detach(), torch.autograd.grad(predictions.sin().sum(), conditions)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_here_nothing_is_copied(sd_folder, caplog, dtype):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder), dtype=dtype).to("cpu")
    layers = layers_of(denoiser)
    assert len(layers) == 4 and not any(layer.copies for layer in layers)
    assert "copied for each pair" not in caplog.text


@pytest.mark.parametrize("fault", [refuses, misreads, misreads_backward, gives_nan])
def test_where_attention_fails_each_pair_gets_a_copy(sd_folder, monkeypatch, caplog, fault):
    expected = predictions_and_gradient(FrozenDenoiser.from_pretrained(str(sd_folder)))
    monkeypatch.setattr(F, "scaled_dot_product_attention", broken_for_shared_keys(fault))
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder)).to("cpu")
    assert all(layer.copies for layer in layers_of(denoiser))
    assert caplog.text.count("copied for each pair") == 1
    for found, wanted in zip(predictions_and_gradient(denoiser), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_choosing_leaves_the_random_numbers_and_the_modes_as_they_were(sd_folder):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    state = torch.random.get_rng_state()
    with torch.no_grad():
        denoiser.to("cpu")
    assert torch.equal(torch.random.get_rng_state(), state) and not denoiser.training
    assert not any(layer.copies for layer in layers_of(denoiser))


def test_channels_last_leaves_the_keys_as_attention_wants_them(sd_folder):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    expected = predictions_and_gradient(denoiser)
    denoiser.unet.to(memory_format=torch.channels_last)
    assert {layer.key.stride(-1) for layer in layers_of(denoiser)} == {1}
    assert all(torch.equal(a, b) for a, b in zip(predictions_and_gradient(denoiser), expected, strict=True))
