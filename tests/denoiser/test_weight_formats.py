"""Denoisers whose weights are pickled, or in half precision alone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcr_hf import FrozenDenoiser
from dcr_hf.denoiser import check_denoiser
from dcr_hf.errors import NotFoundError, UserError

PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def folder(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "sd")


def pickled(name):
    return name.replace("model.safetensors", "pytorch_model.bin") if name.startswith("model") else name[:-11] + "bin"


def predictions(folder):
    denoiser = FrozenDenoiser.from_pretrained(str(folder), torch.float32)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = torch.ones(1, denoiser.condition_width)
    chosen = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        return denoiser.predict_chosen(latents, torch.tensor([5]), conditions, chosen)


def test_pickled_weights_are_read_as_the_others_are(folder, sd_folder):
    for part, name in PARTS.items():
        torch.save(load_file(folder / part / name), folder / part / pickled(name))
        (folder / part / name).unlink()
    assert torch.equal(predictions(folder), predictions(sd_folder))


def test_half_precision_is_read_where_there_is_no_other(folder, sd_folder):
    for part, name in PARTS.items():
        half = {key: tensor.half() for key, tensor in load_file(folder / part / name).items()}
        save_file(half, folder / part / name.replace(".safetensors", ".fp16.safetensors"), {"format": "pt"})
    assert torch.equal(predictions(folder), predictions(sd_folder))  # full precision first
    for part, name in PARTS.items():
        (folder / part / name).unlink()
    found, expected = predictions(folder), predictions(sd_folder)
    assert not torch.equal(found, expected) and torch.allclose(found, expected, atol=5e-2)


def test_a_part_without_weights_is_named_before_anything_is_loaded(folder):
    (folder / "vae" / PARTS["vae"]).unlink()
    with pytest.raises(NotFoundError, match="lacks weights of its vae"):
        check_denoiser(str(folder))


def test_pickled_weights_that_are_none(folder):
    for part in ("unet", "text_encoder"):
        name = PARTS[part]
        (folder / part / name).unlink()
        (folder / part / pickled(name)).write_bytes(b"junk")
        with pytest.raises(UserError, match=part):
            FrozenDenoiser.from_pretrained(str(folder), torch.float32)
