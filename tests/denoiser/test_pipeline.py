"""The supported denoisers: each real layout against its own pipeline, and what is refused."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from dcr_hf import DCRConfig, FrozenDenoiser, Recipe, run
from dcr_hf.denoiser import check_denoiser
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.objectives import Diffused
from helpers.tiny_models import CONDITION_WIDTH, POOLED_WIDTH, save_stable_diffusion

LAYOUTS = {
    "1.x": {"version": 1},
    "2.1 base": {"version": 2},
    "2.1 768": {"version": 2, "prediction_type": "v_prediction"},
    "XL": {"version": "xl"},
    "XL, prompt encoded": {"version": "xl", "force_zeros_for_empty_prompt": False},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def folder(layout, tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("denoiser"), **LAYOUTS[layout])


def inputs_of(pipeline, side, zeros):
    """The inputs that the pipeline itself gives its UNet for the empty prompt: tokens, and any others."""
    if isinstance(pipeline, StableDiffusionPipeline):
        return pipeline.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)[0], None
    prompts = pipeline.encode_prompt("", device="cpu", negative_prompt=None if zeros else "")
    tokens, pooled = prompts[1], prompts[3]  # of the negative prompt
    size = (8 * side, 8 * side)
    ids = pipeline._get_add_time_ids(size, (0, 0), size, tokens.dtype, POOLED_WIDTH)
    return tokens, {"text_embeds": pooled, "time_ids": ids}


@pytest.mark.parametrize("side", [4, 7])
def test_a_pair_is_the_pipelines_own_unet_with_the_condition_on_every_token(folder, layout, side):
    assert check_denoiser(str(folder)) == CONDITION_WIDTH
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    kind = StableDiffusionXLPipeline if layout.startswith("XL") else StableDiffusionPipeline
    empty, added = inputs_of(pipeline := kind.from_pretrained(folder), side, zeros=layout == "XL")
    torch.testing.assert_close(denoiser.empty_prompt, empty)
    generator = torch.Generator().manual_seed(1)
    noisy, conditions = torch.randn(3, 4, side, side, generator=generator), torch.randn(5, 32, generator=generator)
    timesteps = torch.randint(1000, (3,), generator=generator)
    with torch.no_grad():
        pairs = denoiser.predict_pairs(noisy, timesteps, conditions)
        for i in range(3):
            for j in range(5):
                tokens = empty + conditions[j]
                expected = pipeline.unet(noisy[i : i + 1], timesteps[i], tokens, added_cond_kwargs=added).sample[0]
                torch.testing.assert_close(pairs[i, j], expected, rtol=1e-4, atol=1e-5)
    assert denoiser.bias_matrix is not None and (pairs[:, 0] - pairs[:, 1]).abs().max() > 1e-3


def test_latents_and_targets_are_those_that_the_pipeline_was_trained_with(folder, layout):
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    assert denoiser.native_target == ("velocity" if layout == "2.1 768" else "epsilon")
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    drawn = Diffused.draw(denoiser, images)
    torch.manual_seed(0)
    with torch.no_grad():
        latents = denoiser.vae.encode(images * 2 - 1).latent_dist.sample()
    latents = latents * (0.13025 if layout.startswith("XL") else 0.18215)
    torch.testing.assert_close(drawn.latents, latents)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noisy = scheduler.add_noise(latents, drawn.noise, drawn.timesteps)
    torch.testing.assert_close(drawn.noisy_latents, noisy)
    velocity = scheduler.get_velocity(latents, drawn.noise, drawn.timesteps)
    torch.testing.assert_close(drawn.target, velocity if layout == "2.1 768" else drawn.noise)


@pytest.mark.parametrize("zeros", [True, False])
def test_conditions_are_compared_with_tokens_of_the_text_encoders_even_if_the_prompt_is_zeros(tmp_path, zeros):
    folder = save_stable_diffusion(tmp_path, version="xl", force_zeros_for_empty_prompt=zeros)
    denoiser = FrozenDenoiser.from_pretrained(str(folder))
    tokens = StableDiffusionXLPipeline.from_pretrained(folder).encode_prompt("", device="cpu")[0]
    assert denoiser.token_norm == pytest.approx(tokens.norm(dim=-1).mean().item())
    assert bool(denoiser.empty_prompt.any()) is bool(denoiser.pooled_prompt.any()) is not zeros


@pytest.mark.parametrize(
    ("dtype", "asks", "expected"),
    [
        (torch.float16, True, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_a_vae_that_overflows_in_float16_says_so_and_is_heard(sd_xl_folder, tmp_path, dtype, asks, expected):
    folder = shutil.copytree(sd_xl_folder, tmp_path / "xl")
    edit(folder, "vae/config.json", force_upcast=asks)
    denoiser = FrozenDenoiser.from_pretrained(str(folder), dtype=dtype)
    assert (denoiser.vae.dtype, denoiser.unet.dtype) == (expected, dtype)
    assert denoiser.encode(torch.rand(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", ["sd_v_folder", "sd_xl_folder"])
def test_two_steps_of_each_stage_and_an_export(request, name, clip_folder, shards_folder, tmp_path):
    denoiser = request.getfixturevalue(name)
    recipe = Recipe(str(clip_folder), str(denoiser), str(shards_folder), stage1_max_steps=2, stage2_max_steps=2)
    recipe.stage2_learning_rate = 1e-2
    options = {"dataloader_num_workers": 0, "max_bad_fraction": 0.5, "report_to": "none", "logging_steps": 1}
    batch = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    run.run(recipe, DCRConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", **options, **batch))
    for stage in ("stage1", "stage2"):
        log = json.loads((tmp_path / stage / "trainer_state.json").read_text())["log_history"]
        steps = [line for line in log if "loss" in line]
        assert len(steps) == 2 and all(
            0 < line["noise_mse/own"] < 1e3 and line["condition_norm"] > 0 for line in steps
        )
    images = torch.rand(2, 3, 32, 32)
    before, after = (ImageEncoder.from_pretrained(str(f))(images) for f in (clip_folder, tmp_path / "clip-tiny-dcr"))
    assert (before - after).abs().max() > 1e-4
    assert (tmp_path / "clip-tiny-dcr-vision" / "model.safetensors").is_file()


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "tokenizer", "text_encoder", "tokenizer_2"])
def test_a_missing_part_is_named(sd_folder, sd_xl_folder, tmp_path, part):
    folder = shutil.copytree(sd_xl_folder if part.endswith("_2") else sd_folder, tmp_path / "sd")
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"lacks {part}"):
        check_denoiser(str(folder))


def edit(folder, file, **changes):
    config = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(config))


SD3 = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}


@pytest.mark.parametrize(
    ("xl", "file", "changes", "message"),
    [
        (
            False,
            "model_index.json",
            SD3,
            "a StableDiffusion3Pipeline whose denoiser is a transformer.* 1.x, 2.x and XL",
        ),
        (False, "unet/config.json", {"in_channels": 9}, "9 input channels"),
        (False, "unet/config.json", {"time_cond_proj_dim": 256}, "other inputs too .time_cond_proj_dim 256"),
        (False, "unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        (False, "unet/config.json", {"addition_embed_type": "text_time"}, "lacks a text_encoder_2"),
        (False, "unet/config.json", {"cross_attention_dim": 48}, "tokens have width 32, and its UNet takes 48"),
        (True, "unet/config.json", {"addition_embed_type": None}, "has a text_encoder_2"),
        # SD-XL's refiner, which has five numbers in place of six
        (
            True,
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 16 + 5 * 8},
            "takes 56 .* are 64.*refiner",
        ),
        (False, "text_encoder/config.json", {"model_type": "t5"}, "'t5' model as text_encoder"),
        (False, "scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample'"),
    ],
)
def test_another_pipeline_is_refused_before_weights_are_read(request, tmp_path, xl, file, changes, message):
    folder = shutil.copytree(request.getfixturevalue("sd_xl_folder" if xl else "sd_folder"), tmp_path / "sd")
    for weights in folder.glob("*/*.safetensors"):
        weights.write_bytes(b"never read")
    assert check_denoiser(str(folder)) == CONDITION_WIDTH
    edit(folder, file, **changes)
    with pytest.raises(ValueError, match=message):
        check_denoiser(str(folder))


def test_a_noise_schedule_of_another_kind_is_refused(sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "sd")
    karras = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(karras))
    with pytest.raises(ValueError, match="its EDMEulerScheduler has no beta_schedule"):
        check_denoiser(str(folder))


def test_neither_a_folder_nor_an_id():
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a hub id"):
        check_denoiser("no_such_folder")
