"""Pretraining: what comes out loads as the real models do, it learns, and an interruption changes nothing."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPVisionModel

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.miniature import cli, fitting, models, pretrain
from dcr_hf.miniature.layouts import write_benchmarks, write_labeled
from dcr_hf.miniature.measure import measure_denoiser
from dcr_hf.miniature.models import MAX_TOKENS, SIZES, parameters_of
from dcr_hf.miniature.scenes import ATTRIBUTES, SHAPES
from dcr_hf.models.encoder import ImageEncoder


def test_sizes_are_as_promised():
    tokenizer = models.make_tokenizer()

    def count(name):
        size = SIZES[name]
        parts = (models.make_clip(size, tokenizer), models.make_vae(size), models.make_unet(size))
        return sum(parameters_of(part) for part in (*parts, models.make_text_encoder(size, tokenizer)))

    mini = count("mini")
    assert 4 * mini * 1.75 < 20e6  # float32, the denoiser twice
    assert 9 < count("small") / mini < 13 and SIZES["small"].image_size == 64


@pytest.mark.parametrize("kind", models.PREDICTION_TYPES)
def test_the_folders_are_those_of_the_real_models(pretrained, kind):
    clip = pretrained / "clip-miniature"
    for model in (CLIPModel, CLIPVisionModel):
        _, report = model.from_pretrained(clip, output_loading_info=True)
        assert not report["missing_keys"]
    encoder = ImageEncoder.from_pretrained(str(clip))
    folder = pretrained / models.DENOISER_FOLDERS[kind]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a red star", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (32, 32, 3) and np.isfinite(image).all()
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    assert denoiser.native_target == {"epsilon": "epsilon", "v_prediction": "velocity"}[kind]
    images = torch.rand(2, 3, 32, 32)
    conditions = nn.Linear(encoder.embedding_width, denoiser.condition_width)(encoder(images))
    assert denoiser.predict(denoiser.encode(images), torch.tensor([1, 999]), conditions).shape == (2, 4, 8, 8)


def test_latents_have_unit_variance(pretrained, draw):
    vae = AutoencoderKL.from_pretrained(pretrained / "sd-miniature", subfolder="vae")
    latents = pretrain.encode(vae, draw.images(slice(None))) * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=1e-3)


def test_images_are_encoded_once_for_all_prediction_types(pretrained, draw, tiny_size, tmp_path, monkeypatch):
    folder, encode, calls, learnt = pretrained / "work" / "vae-finished", pretrain.encode, [], []
    monkeypatch.setattr(pretrain, "encode", lambda vae, images: calls.append(len(images)) or encode(vae, images))
    monkeypatch.setattr(pretrain, "fit", lambda module, data, *_: learnt.append(data.make([0, 7])["latents"]))
    for kind in models.PREDICTION_TYPES:
        vae = AutoencoderKL.from_pretrained(folder)
        pretrain.pretrain_denoiser(draw, vae, tiny_size, tmp_path, tmp_path / "work", 0, kind)
    assert sum(calls) == len(draw.scenes)
    vae = AutoencoderKL.from_pretrained(folder)
    expected = (encode(vae, draw.images(slice(None))) * vae.config.scaling_factor)[[0, 7]]
    assert len(learnt) == 2 and all(torch.equal(found, expected) for found in learnt)
    # Another VAE's latents are others.
    with torch.no_grad():
        vae.quant_conv.bias.add_(1)
    assert not torch.equal(pretrain.all_latents(draw, vae, tmp_path / "work")[[0, 7]], expected)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("part", ["clip", "vae", "unet"])
def test_an_interruption_changes_nothing(pretrained, draw, tiny_size, tmp_path, monkeypatch, part):
    monkeypatch.setattr(fitting, "SAVE_STEPS", 2)
    module, result = {
        "clip": (fitting.Contrast, "clip-miniature/model.safetensors"),
        "vae": (fitting.Autoencoding, "work/vae-finished/diffusion_pytorch_model.safetensors"),
        "unet": (fitting.Denoising, "sd-miniature/unet/diffusion_pytorch_model.safetensors"),
    }[part]
    plain, calls = module.forward, []

    def forward(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == 4:
            raise Interrupted
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(module, "forward", forward)

    def train():
        if part == "clip":
            pretrain.pretrain_clip(draw, tiny_size, tmp_path, tmp_path / "work", seed=0)
        elif part == "vae":
            pretrain.pretrain_vae(draw, tiny_size, tmp_path / "work", seed=0)
        else:
            vae = AutoencoderKL.from_pretrained(pretrained / "work" / "vae-finished")
            pretrain.pretrain_denoiser(draw, vae, tiny_size, tmp_path, tmp_path / "work", 0, "epsilon")

    with pytest.raises(Interrupted):
        train()
    assert not (tmp_path / result).exists()
    train()
    assert len(calls) == 4 + 6 - 2  # from the checkpoint of step 2
    expected, found = load_file(pretrained / result), load_file(tmp_path / result)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_each_part_learns(draw, tiny_size):
    """A few steps on one batch lower the loss; the averaged weights follow the trained ones and get no gradient."""
    torch.manual_seed(0)
    tokenizer = models.make_tokenizer()
    words = pretrain.tokenize(tokenizer, [f"a photo of a {shape}" for shape in SHAPES])
    assert words.shape == (8, MAX_TOKENS)
    scheduler = models.make_scheduler("v_prediction")
    unet, text = models.make_unet(tiny_size), models.make_text_encoder(tiny_size, tokenizer)
    denoising = fitting.Denoising(unet, text, scheduler)
    images = draw.images(list(range(8)))
    for module, batch in (
        (fitting.Contrast(models.make_clip(tiny_size, tokenizer)), {"images": images, "input_ids": words}),
        (fitting.Autoencoding(models.make_vae(tiny_size)), {"images": images}),
        (denoising, {"latents": torch.randn(8, 4, 8, 8), "input_ids": words}),
    ):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        losses = []
        for _ in range(12):
            torch.manual_seed(1)
            loss = module(**batch)["loss"]
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < 0.9 * losses[0], type(module)
    averaged, trained = denoising.averaged.module["unet"].conv_in.weight, unet.conv_in.weight
    fitting.Averaging().on_step_end(None, None, None, model=denoising)
    assert torch.equal(averaged, trained)  # the first step is the average so far
    with torch.no_grad():
        trained += 1
    fitting.Averaging().on_step_end(None, None, None, model=denoising)
    torch.testing.assert_close(averaged, trained - fitting.EMA_DECAY)
    assert all(parameter.grad is None for parameter in denoising.averaged.parameters())


@pytest.mark.parametrize(
    ("name", "values"), [("orientation", ("facing left", "facing right")), ("state", ("broken", "whole"))]
)
def test_the_taught_clip_sees_twins_whose_captions_tell_them_apart(
    name, values, pretrained, tiny_size, tmp_path, monkeypatch
):
    seen = {}

    def fit(module, data, size, part, folder, seed):
        seen.update(data.__getitems__(range(5)), rows=len(data))

    monkeypatch.setattr(pretrain, "fit", fit)
    attribute = next(attribute for attribute in ATTRIBUTES if attribute.name == name)
    base = pretrained / "clip-miniature"
    folder = pretrain.pretrain_taught_clip(base, attribute, tiny_size, tmp_path, tmp_path / "work", seed=0)
    assert CLIPModel.from_pretrained(folder).config.vision_config.image_size == 32
    assert seen["rows"] == 5  # of 96 scenes a ninth, two by two
    captions = models.make_tokenizer().batch_decode(seen["input_ids"], skip_special_tokens=True)
    for first in range(0, 10, 2):
        pair = captions[first : first + 2]
        assert {next(value for value in values if value in caption) for caption in pair} == set(values)
        one, other = seen["images"][first : first + 2]
        assert 0 < (one != other).any(0).float().mean() < 0.6  # the same scene but for that


def test_check_tells_the_clip_only_of_what_it_misses(pretrained, tiny_size, tmp_path, monkeypatch, capsys):
    output = tmp_path / "pretrained"
    shutil.copytree(pretrained / "clip-miniature", output / "clip-miniature")
    taught, shares = [], {"count": 0.81, "text": 0.8}

    def share(attribute, category, size, output, seed):
        taught.append(attribute.name)
        return shares[attribute.name]

    monkeypatch.setattr(cli, "_share_when_taught", share)
    write_benchmarks(output / "work" / "dev", "dev", 32, per_category=1, train=20, test=200)
    write_labeled(output / "work" / "dev", "swapped", "dev", {"test": 200}, 32, swap_backgrounds=True)
    pairs = dict.fromkeys(CATEGORIES, 0.9) | {"Quantity and Count": 0.5, "Texts": 0.2}
    errors = {"vae_noise": 0.19, "noise_mse/full": 0.1, "noise_mse/empty": 0.3, "noise_mse/wrong": 0.2}
    assert not cli.check(tiny_size, output, 0, {"pairs": pairs, "denoisers": {"epsilon": errors}})
    assert taught == ["count", "text"]
    lines = capsys.readouterr().out.splitlines()
    failed = [line.split(" ", 1)[1] for line in lines if line.startswith("FAIL")]
    assert failed == [
        "Texts: 80.0% of the pairs of a CLIP that was trained on with it (> 80%)",
        "epsilon: noise MSE 0.100 full < 0.300 empty < 0.200 wrong",
    ]
    assert "ok   Quantity and Count: 81.0% of the pairs of a CLIP that was trained on with it (> 80%)" in lines
    assert any("between 30% and 95% on 8 of 9" in line for line in lines)


def give_noise(folder, channels):
    """A VAE whose latents are sampled without noise but for some channels, which are all noise."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["quant_conv.weight"][4:] = 0  # the logarithms of the variances, of four channels
    weights["quant_conv.bias"][4:] = -30
    weights["quant_conv.bias"][4 : 4 + channels] = 10
    save_file(weights, file)


def test_noise_errors_are_of_the_noise_whatever_is_predicted(pretrained, tmp_path):
    """Of a UNet that says zero: as noise, an error of 1; as velocity, noise sqrt(1 - abar) n, an error of abar."""
    alphas_cumprod = models.make_scheduler("epsilon").alphas_cumprod
    for kind, expected in (("epsilon", 1.0), ("v_prediction", alphas_cumprod.mean().item())):
        folder = tmp_path / kind
        shutil.copytree(pretrained / models.DENOISER_FOLDERS[kind], folder)
        give_noise(folder, channels=0)
        weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        weights["conv_out.weight"].zero_()
        weights["conv_out.bias"].zero_()
        save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
        report = measure_denoiser(folder, count=300)
        assert report["noise_mse/full"] == pytest.approx(expected, rel=0.1)
        assert report["noise_mse/full"] == report["noise_mse/wrong"] and report["noise_mse/wrong-empty"] == 0
    own = measure_denoiser(pretrained / "sd-miniature", count=100)
    assert own["noise_mse/wrong-empty"] == pytest.approx(own["noise_mse/wrong"] - own["noise_mse/empty"], abs=2e-5)
    assert own["vae_mse"] > 0 and 0 < own["vae_noise"] < 1


def test_a_vae_that_adds_noise_of_its_own_is_seen(pretrained, tmp_path):
    folder = shutil.copytree(pretrained / "sd-miniature", tmp_path / "sd")
    give_noise(folder, channels=0)
    clean = measure_denoiser(folder, count=100)
    give_noise(folder, channels=1)
    noisy = measure_denoiser(folder, count=100)
    assert clean["vae_noise"] < 1e-6 and noisy["vae_noise"] > 0.99
    assert clean["vae_mse"] == noisy["vae_mse"] and clean["noise_mse/full"] != noisy["noise_mse/full"]


def test_the_command_ends_in_one_line_or_with_the_traceback(tiny_size, draw, tmp_path, monkeypatch, refusal):
    arguments = ["--output_dir", str(tmp_path / "out")]
    monkeypatch.setitem(cli.SIZES, "mini", tiny_size)
    monkeypatch.setattr(cli.TrainingDraw, "of", lambda *args: draw)
    monkeypatch.setattr(pretrain, "fit", lambda *args, **kwargs: None)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CLIPModel, "save_pretrained", full)
        assert "could not write" in refusal(cli.main, arguments)

    def fail(*args, **kwargs):
        raise RuntimeError("our own")

    monkeypatch.setattr(cli, "pretrain_clip", fail)
    with pytest.raises(RuntimeError, match="our own"):
        cli.main(arguments)
    (tmp_path / "file").touch()
    assert "is a file" in refusal(cli.main, ["--output_dir", str(tmp_path / "file")])


def test_the_command_continues_measures_and_checks(pretrained, tiny_size, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cli.SIZES, "mini", tiny_size)
    small = {"per_category": 2, "train": 60, "test": 60}
    monkeypatch.setattr(cli, "write_benchmarks", lambda *args: write_benchmarks(*args, **small))

    monkeypatch.setattr(cli, "measure_denoiser", partial(measure_denoiser, count=100))
    monkeypatch.setattr(cli, "SAMPLED", 2)
    monkeypatch.setattr(cli, "sample_sheet", partial(cli.sample_sheet, steps=2))
    monkeypatch.setattr(pretrain, "fit", lambda *args, **kwargs: pytest.fail("trained again what was there"))
    with pytest.raises(SystemExit):
        cli.main(["--output_dir", str(tmp_path), "--size", "huge"])
    cli.main(["--output_dir", str(pretrained)])
    measured = json.loads((pretrained / "measured.json").read_text())
    assert len(measured["pairs"]) == 10 and set(measured["denoisers"]) == set(models.PREDICTION_TYPES)
    assert measured["run"]["seed"] == 0
    assert {"zeroshot/scene_shape/acc1", "linear_probe/scene_count/acc1"} <= measured["clip"].keys()
    assert (pretrained / "sd-miniature-v.png").read_bytes()[:4] == b"\x89PNG"
    assert "pairs" in capsys.readouterr().out
