"""--condition patches: tokens of some of an image's patches, appended to the empty prompt."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional as F

from dcr_hf import DCRConfig, FrozenDenoiser, Recipe, dcr_loss, run
from dcr_hf.diagnostics.__main__ import main as diagnose
from dcr_hf.models.condition import ConditionModel, choose_patches
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.projector import Projector, check_projector
from dcr_hf.objectives import Settings, dcr
from dcr_hf.training.option_checks import check_objectives
from dcr_hf.training.plan import plan_stages
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.runs import batch_of_conditions, diffused_at_random, options_of_a_run, short_run
from helpers.tiny_models import CONDITION_WIDTH, EMBEDDING_WIDTH

FAMILY_NAMES = ["clip", "siglip"]
PATCHES, PATCH_WIDTH = 16, 24  # of both tiny encoders
CPU = torch.device("cpu")


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def model_of(folder, ratio=0.25):
    return projector_stage(ImageEncoder.from_pretrained(str(folder)), CONDITION_WIDTH, 0, ratio)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_an_encoders_patches_are_those_of_the_same_pass(encoder_folders, name):
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[name]))
    passes = []
    encoder.model.vision_model.register_forward_hook(lambda *args: passes.append(1))
    dual = load_dual_encoder(str(encoder_folders[name]))
    with torch.no_grad():
        embeddings, patches = encoder.features(images())
        hidden = dual.vision_model(pixel_values=encoder.normalize(images())).last_hidden_state
        torch.testing.assert_close(encoder(images()), embeddings)
    assert len(passes) == 2 and patches.shape == (3, encoder.patch_count, encoder.patch_width)
    assert (encoder.patch_count, encoder.patch_width) == (PATCHES, PATCH_WIDTH)
    torch.testing.assert_close(patches, hidden[:, {"clip": 1, "siglip": 0}[name] :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("patches", "ratio", "expected"),
    [(16, 0.25, [2, 6, 10, 14]), (10, 0.3, [1, 5, 8]), (10, 0.01, [5]), (3, 1.0, [0, 1, 2]), (256, 0.004, [128])],
)
def test_in_eval_mode_patches_are_evenly_spaced(patches, ratio, expected):
    found = choose_patches(2, patches, ratio, at_random=False, device=CPU)
    assert found.tolist() == [expected, expected]


def test_in_training_every_image_has_others_and_at_every_step():
    torch.manual_seed(0)
    first, second = (choose_patches(40, 30, 0.2, at_random=True, device=CPU) for _ in range(2))
    assert first.shape == (40, 6) and not torch.equal(first, second)
    chosen = [set(row) for row in first.tolist()]
    assert all(len(row) == 6 for row in chosen) and len(set(map(frozenset, chosen))) > 35
    assert set.union(*chosen) == set(range(30))
    torch.manual_seed(0)
    assert torch.equal(first, choose_patches(40, 30, 0.2, at_random=True, device=CPU))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_tokens_are_projected_patches(encoder_folders, name):
    model = model_of(encoder_folders[name])
    with torch.no_grad():
        embeddings, patches = model.encoder.features(images())
        norm, first, _, second = model.projector.patch_layers
        every = F.layer_norm(patches, (PATCH_WIDTH,), norm.weight, norm.bias)
        every = F.linear(F.gelu(F.linear(every, first.weight, first.bias)), second.weight, second.bias)
        found = model.eval()(images())
        torch.testing.assert_close(found.tokens, every[:, [2, 6, 10, 14]], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.conditions, model.projector(embeddings))
        model.train()
        kept = []
        for _ in range(2):
            distance = (model(images()).tokens[:, :, None] - every[:, None]).abs().amax(dim=-1)  # (B, M, N)
            assert distance.amin(dim=-1).max() < 1e-5
            kept.append(distance.argmin(dim=-1).sort(dim=-1).values)
    assert kept[0].shape == (3, 4) and not torch.equal(kept[0], kept[1])


def test_a_projector_begins_as_the_one_without_patches(clip_folder):
    without = model_of(clip_folder, None)
    assert without(images()).tokens is None and without.kept_patches == 0
    expected, found = without.projector.state_dict(), model_of(clip_folder).projector.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found.keys() - expected.keys() == {n.replace("layers", "patch_layers") for n in expected}


@pytest.fixture(params=["sd_folder", "sd_xl_folder"])
def folder(request):
    return str(request.getfixturevalue(request.param))


def parts_of_conditions(count, kept=5):
    generator = torch.Generator().manual_seed(2)
    conditions = torch.randn(count, CONDITION_WIDTH, generator=generator)
    return conditions, torch.randn(count, kept, CONDITION_WIDTH, generator=generator)


def plain_predictions(folder, denoiser, diffused, conditions, tokens):
    """(B, K, 4, h, w), a pair at a time through a UNet that nothing was installed in."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    added = denoiser._added(diffused.noisy_latents)
    rows = []
    for noisy, timestep in zip(diffused.noisy_latents, diffused.timesteps, strict=True):
        seen = [torch.cat([denoiser.empty_prompt[0] + c, own]) for c, own in zip(conditions, tokens, strict=True)]
        assert all(len(one) == 77 + tokens.shape[1] for one in seen)
        predicted = [unet(noisy[None], timestep, one[None], added_cond_kwargs=added).sample[0] for one in seen]
        rows.append(torch.stack(predicted))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [0, 4])
def test_predictions_and_gradients_are_those_of_a_unet_that_sees_the_tokens(folder, chunk, monkeypatch):
    denoiser = FrozenDenoiser.from_pretrained(folder, pair_chunk_size=chunk)
    diffused, given = diffused_at_random(denoiser, 2), parts_of_conditions(3)
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    monkeypatch.setattr(denoiser, "_fast_path", lambda *args: pytest.fail("took the fast path"))
    found = denoiser.predict_pairs(diffused.noisy_latents, diffused.timesteps, denoiser.with_tokens(*leaves))
    gradients = torch.autograd.grad(found.square().sum(), leaves)
    again = [tensor.clone().requires_grad_() for tensor in given]
    expected = plain_predictions(folder, denoiser, diffused, *again)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(gradients, torch.autograd.grad(expected.square().sum(), again), strict=True):
        assert other.norm() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
    moved = plain_predictions(folder, denoiser, diffused, given[0], given[1].flip(0))
    assert (moved - expected).norm() / expected.norm() > 1e-3


def test_conditions_without_tokens_stay_what_they_are(sd_folder):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    conditions, _ = parts_of_conditions(2)
    assert denoiser.with_tokens(conditions, None) is conditions


@pytest.mark.parametrize("space", ["model", "residual"])
def test_dcr_contrasts_what_is_predicted_with_tokens(folder, space):
    denoiser = FrozenDenoiser.from_pretrained(folder)
    diffused, (conditions, tokens) = diffused_at_random(denoiser, 3), parts_of_conditions(6)
    own, of_views = denoiser.with_tokens(conditions, tokens).chunk(2)
    found = dcr(denoiser, batch_of_conditions(diffused, own, of_views), Settings(space=space))
    with torch.no_grad():
        predictions = plain_predictions(folder, denoiser, diffused, conditions, tokens)
        pairs, views, target = predictions[:, :3], predictions[range(3), range(3, 6)], diffused.target
        if space == "residual":  # less the prediction under the empty prompt alone
            nothing = torch.zeros(1, CONDITION_WIDTH), torch.zeros(1, 0, CONDITION_WIDTH)
            empty = plain_predictions(folder, denoiser, diffused, *nothing)
            pairs, views, target = pairs - empty, views - empty[:, 0], target - empty[:, 0]
        torch.testing.assert_close(found.loss, dcr_loss(pairs, views, target), rtol=1e-3, atol=1e-5)
    token_norm = denoiser.token_norm
    assert found.metrics["condition_norm"].item() == pytest.approx(
        (conditions[:3].norm(dim=-1).mean() / token_norm).item(), rel=1e-5
    )
    assert found.metrics["patch_token_norm"].item() == pytest.approx(
        (tokens[:3].norm(dim=-1).mean() / token_norm).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_encoder_gets_a_gradient_through_the_patches_alone(encoder_folders, sd_folder, tmp_path, name):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    args = short_run(tmp_path, condition="patches", patch_keep_ratio=0.25, lora_dropout=0.0, lora_bias="none")
    model = encoder_stage(
        ImageEncoder.from_pretrained(str(encoder_folders[name])), model_of(encoder_folders[name]).projector, args
    ).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    for path, parameter in trained.items():  # B starts at zero, which would hide the gradient of A
        if "lora_B" in path:
            torch.nn.init.normal_(parameter, std=0.02)
    diffused, encoded = diffused_at_random(denoiser, 3), model(images())
    conditions = denoiser.with_tokens(encoded.conditions.detach(), encoded.tokens)
    denoiser.predict(diffused.noisy_latents, diffused.timesteps, conditions).square().sum().backward()
    without = {path for path, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()}
    # What lies between the patches and z alone.
    pooling = {"clip": "visual_projection", "siglip": "vision_model.head"}[name]
    assert without == {path for path in trained if pooling in path} and len(without) < len(trained)


@pytest.fixture
def recipe(clip_folder, sd_folder, shards_folder):
    return Recipe(
        encoder=str(clip_folder),
        denoiser=str(sd_folder),
        train_data=str(shards_folder),
        stage1_max_steps=2,
        stage1_learning_rate=1e-2,
        stage2_max_steps=2,
        stage2_learning_rate=1e-2,
    )


def config(folder, **options):
    given = {"condition": "patches", "patch_keep_ratio": 0.2, "max_bad_fraction": 0.5, "warmup_steps": 0}
    return options_of_a_run(folder, **(given | {"save_strategy": "steps", "save_steps": 1} | options))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_both_stages_train_export_and_go_on_to_the_same_bits(encoder_folders, recipe, tmp_path, name):
    recipe.encoder = str(encoder_folders[name])
    run.run(recipe, config(tmp_path))
    projector = json.loads((tmp_path / "stage1" / "projector" / "config.json").read_text())
    assert projector == {
        "embedding_width": EMBEDDING_WIDTH[name],
        "condition_width": CONDITION_WIDTH,
        "patch_width": PATCH_WIDTH,
    }
    weights = load_file(tmp_path / "stage1" / "projector" / "model.safetensors")
    fresh = model_of(recipe.encoder).projector.state_dict()
    assert weights.keys() == fresh.keys() and not any(torch.equal(weights[key], fresh[key]) for key in fresh)
    for stage in ("stage1", "stage2"):
        history = json.loads((tmp_path / stage / "trainer_state.json").read_text())["log_history"]
        assert all(line["patch_token_norm"] > 0 for line in history if "loss" in line)
    exported = load_file(tmp_path / f"{name}-tiny-dcr" / "model.safetensors")
    base = load_file(encoder_folders[name] / "model.safetensors")
    assert exported.keys() == base.keys() and any(not torch.equal(exported[key], base[key]) for key in base)

    for path in [*tmp_path.glob(f"{name}-tiny-dcr*"), *tmp_path.glob("stage*/*")]:
        if path.name != "checkpoint-1":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.run(recipe, config(tmp_path))
    again = load_file(tmp_path / "stage1" / "projector" / "model.safetensors")
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    again = load_file(tmp_path / f"{name}-tiny-dcr" / "model.safetensors")
    assert all(torch.equal(again[key], exported[key]) for key in exported)


def test_end_to_end_trains_both_networks_and_the_encoder_and_is_diagnosed(recipe, tmp_path):
    recipe.stage = "end_to_end"
    run.run(recipe, config(tmp_path, preview_steps=2, log_gradient_conflict_every=2))
    layers = json.loads((tmp_path / "end_to_end" / "gradient_conflict.json").read_text())["layers"]
    assert {"1", "visual_projection", "projector.1", "projector.patch_layers.1"} <= layers.keys()
    assert (tmp_path / "end_to_end" / "preview" / "step-0000002.png").is_file()
    weights = load_file(tmp_path / "end_to_end" / "projector" / "model.safetensors")
    fresh = model_of(recipe.encoder).projector.state_dict()
    assert not any(torch.equal(weights[key], fresh[key]) for key in fresh)
    assert (tmp_path / "clip-tiny-dcr").is_dir()


def test_a_checkpoint_of_another_condition_is_not_gone_on_from(recipe, tmp_path):
    recipe.stage, recipe.stage1_max_steps = "1", 1
    run.run(recipe, config(tmp_path))
    recipe.stage1_max_steps = 2
    (tmp_path / "stage1" / "projector").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"patch_keep_ratio: 0\.2 -> 0\.5"):
        run.run(recipe, config(tmp_path, patch_keep_ratio=0.5))
    with pytest.raises(ValueError, match="condition: 'patches' -> 'cls'"):
        run.run(recipe, config(tmp_path, condition="cls", patch_keep_ratio=0.1))


def test_the_plan_says_what_a_step_costs(recipe, tmp_path, capsys):
    recipe.dry_run = True
    run.run(recipe, config(tmp_path / "out"))
    plan = capsys.readouterr().out
    assert plan.count("c, and tokens of 3 of 16 patches; without the fast path") == 2  # both stages
    assert plan.count("20 a step, forward and backward\n") == 2
    run.run(recipe, config(tmp_path / "out", condition="cls", patch_keep_ratio=0.1))
    plan = capsys.readouterr().out
    assert "patches" not in plan and "fast path" not in plan


def test_a_projector_written_before_there_were_patches_loads(tmp_path):
    Projector(16, CONDITION_WIDTH).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"embedding_width": 16, "condition_width": CONDITION_WIDTH}))
    assert check_projector(tmp_path, 16, CONDITION_WIDTH) == tmp_path
    projector = Projector.from_pretrained(tmp_path)
    assert projector.patch_width is None and projector.patch_layers is None


@pytest.mark.parametrize(
    ("trained", "options", "message"),
    [
        (None, {}, "trained with --condition cls; --condition patches needs another"),
        (
            PATCH_WIDTH,
            {"condition": "cls", "patch_keep_ratio": 0.1},
            "trained with --condition patches; --condition cls needs",
        ),
        (PATCH_WIDTH + 8, {}, "maps patches of width 32; this encoder's patches have width 24"),
    ],
)
@pytest.mark.parametrize("stage", ["2", "all"])
def test_a_projector_of_another_condition_is_refused_before_anything_is_loaded(
    recipe, tmp_path, monkeypatch, trained, options, message, stage
):
    """Given, or the result of a stage 1 from which the run would continue."""
    place = tmp_path / "given" if stage == "2" else tmp_path / "out" / "stage1" / "projector"
    Projector(EMBEDDING_WIDTH["clip"], CONDITION_WIDTH, trained).save_pretrained(place)
    recipe.stage, recipe.projector = stage, str(place) if stage == "2" else None
    for loaded in (run.ImageEncoder, run.FrozenDenoiser):
        monkeypatch.setattr(loaded, "from_pretrained", lambda *args: pytest.fail("loaded a model first"))
    with pytest.raises(ValueError, match=message):
        run.run(recipe, config(tmp_path / "out", **options))
    if stage == "all":  # it may overwrite the result that it refuses
        over, args = dataclasses.replace(recipe, overwrite_output_dir=True), config(tmp_path / "out", **options)
        run.check(over, args, plan_stages(over, args))


def test_the_scatter_of_theorem_1_is_of_conditions_of_embeddings_alone(recipe, tmp_path, capsys):
    Projector(EMBEDDING_WIDTH["clip"], CONDITION_WIDTH, PATCH_WIDTH).save_pretrained(tmp_path)
    given = ["--encoder", recipe.encoder, "--projector", str(tmp_path), "--denoiser", recipe.denoiser]
    with pytest.raises(SystemExit) as ended:
        diagnose(["scatter", *given, "--data", "nowhere/at_all"])
    assert ended.value.code == 2 and "trained with --condition patches" in capsys.readouterr().err


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_a_ratio_is_a_share(tmp_path, ratio):
    with pytest.raises(ValueError, match=rf"--patch_keep_ratio is {ratio}; it is a share"):
        DCRConfig(output_dir=str(tmp_path), use_cpu=True, condition="patches", patch_keep_ratio=ratio)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("all", {"condition": "cls"}, "--patch_keep_ratio is for --condition patches and would change nothing"),
        ("2", {"objective": "contrastive"}, "--condition patches is what the denoiser sees, and the objective contra"),
    ],
)
def test_options_that_change_nothing_are_refused(recipe, tmp_path, stage, options, message):
    recipe.stage = stage
    with pytest.raises(ValueError, match=message):
        args = config(tmp_path, **options)
        check_objectives(recipe, args, plan_stages(recipe, args))


def test_a_model_wants_projector_and_ratio_alike(clip_folder):
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    with pytest.raises(ValueError, match=r"patch_keep_ratio is 0\.5 and the projector's patch_width None"):
        ConditionModel(encoder, Projector(16, CONDITION_WIDTH), 0.5)
    with pytest.raises(ValueError, match="patch_keep_ratio is None and the projector's patch_width 24"):
        ConditionModel(encoder, Projector(16, CONDITION_WIDTH, PATCH_WIDTH))
