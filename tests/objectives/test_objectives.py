"""The baselines: value and gradient against a plain form, what they cost, what a run of each trains."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcr_hf import DCRTrainer, FrozenDenoiser, Recipe
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.objectives import OBJECTIVES, Batch, Settings, contrastive, joint, reconstruction
from dcr_hf.objectives.baselines import LOGGED
from dcr_hf.objectives.losses import embedding_info_nce, keep_distance
from dcr_hf.training.option_checks import check_objectives
from dcr_hf.training.plan import plan_stages
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.runs import diffused_at_random, short_run
from helpers.tiny_models import CONDITION_WIDTH

B, D = 6, 16


def check(recipe, config):
    check_objectives(recipe, config, plan_stages(recipe, config))


@pytest.fixture(params=["epsilon", "velocity"])
def denoiser(request, sd_folder, sd_v_folder):
    return FrozenDenoiser.from_pretrained(str({"epsilon": sd_folder, "velocity": sd_v_folder}[request.param]))


@pytest.fixture
def batch(denoiser):
    generator = torch.Generator().manual_seed(3)
    embeddings = [tensor.requires_grad_() for tensor in torch.randn(2, B, D, generator=generator)]
    conditions = [tensor.requires_grad_() for tensor in torch.randn(2, B, CONDITION_WIDTH, generator=generator)]
    diffused = diffused_at_random(denoiser, B)
    return Batch(*embeddings, *conditions, lambda: diffused)


def gradients(loss, batch):
    inputs = (batch.embeddings, batch.view_embeddings, batch.conditions, batch.view_conditions)
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def test_reconstruction_is_the_denoisers_own_loss(denoiser, batch):
    before = denoiser.evaluations
    outcome = reconstruction(denoiser, batch, Settings())
    assert denoiser.evaluations - before == B + min(B, LOGGED)
    diffused = batch.diffuse()
    tokens = denoiser.empty_prompt + batch.conditions[:, None]
    predicted = denoiser.unet(diffused.noisy_latents, diffused.timesteps, tokens).sample
    expected = F.mse_loss(predicted, diffused.target)
    torch.testing.assert_close(outcome.loss, expected)
    found, wanted = (gradients(loss, batch)[2] for loss in (outcome.loss, expected))
    assert (found - wanted).norm() < 1e-3 * wanted.norm() and wanted.norm() > 0
    # The view plays no part.
    assert [g is None for g in gradients(reconstruction(denoiser, batch, Settings()).loss, batch)] == [1, 1, 0, 1]


def test_reconstruction_logs_fidelity_without_a_backward_pass_for_it(denoiser, batch):
    passes = []
    denoiser.unet.conv_out.register_full_backward_hook(lambda module, _, gradient: passes.append(len(gradient[0])))
    outcome = reconstruction(denoiser, batch, Settings())
    outcome.loss.backward()
    assert passes == [B]
    assert not any(value.requires_grad for value in outcome.metrics.values())
    diffused = batch.diffuse()
    n, t = diffused.noisy_latents, diffused.timesteps
    # Under another image's condition only the first few are looked at.
    for name, rows, chosen in (("own", slice(B), [*range(B)]), ("other", slice(LOGGED), [B - 1, *range(LOGGED - 1)])):
        noise = denoiser.as_noise(denoiser.predict(n[rows], t[rows], batch.conditions[chosen]), n[rows], t[rows])
        torch.testing.assert_close(outcome.metrics[f"noise_mse/{name}"], F.mse_loss(noise, diffused.noise[rows]))


def test_contrastive_is_cross_entropy_over_cosines_and_asks_no_denoiser(denoiser, batch):
    before = denoiser.evaluations
    loss = contrastive(denoiser, batch, Settings(temperature=0.2)).loss
    assert denoiser.evaluations == before
    cosines = F.normalize(batch.embeddings, dim=1) @ F.normalize(batch.view_embeddings, dim=1).T
    expected = F.cross_entropy(cosines / 0.2, torch.arange(B))
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, batch)[:2], gradients(expected, batch)[:2], strict=True):
        torch.testing.assert_close(found, wanted)


def test_contrastive_by_hand():
    # Two images at right angles; the first's view is itself, the second's lies between them. At T = 1:
    images, views = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [3, 3]])
    half = math.sqrt(0.5)
    first = -math.log(math.exp(1) / (math.exp(1) + math.exp(half)))
    second = -math.log(math.exp(half) / (math.exp(half) + math.exp(0)))
    assert embedding_info_nce(images, views, temperature=1).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_joint_is_the_weighted_sum(denoiser, batch):
    settings = Settings(lambda_rec=0.3, lambda_con=2.0, temperature=0.2)
    before = denoiser.evaluations
    outcome = joint(denoiser, batch, settings)
    assert denoiser.evaluations - before == B + LOGGED
    parts = [part(denoiser, batch, settings) for part in (reconstruction, contrastive)]
    torch.testing.assert_close(outcome.loss, 0.3 * parts[0].loss + 2.0 * parts[1].loss)
    assert outcome.metrics.keys() == parts[0].metrics.keys() | parts[1].metrics.keys()


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        (Settings(lambda_con=0.0), reconstruction),
        (Settings(lambda_rec=0.0), contrastive),
    ],
)
def test_joint_with_one_weight_zero_is_the_other_loss_exactly(denoiser, batch, settings, other):
    before = denoiser.evaluations
    found, between = joint(denoiser, batch, settings), denoiser.evaluations
    expected = other(denoiser, batch, settings)
    assert between - before == denoiser.evaluations - between  # and costs as much
    assert torch.equal(found.loss, expected.loss) and found.metrics.keys() == expected.metrics.keys()
    for a, b in zip(gradients(found.loss, batch), gradients(expected.loss, batch), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.fixture
def args(tmp_path):
    def make(**options):
        return short_run(tmp_path, **({"max_steps": 2} | options))

    return make


@pytest.fixture
def train(clip_folder, sd_folder, args):
    """Two steps of stage 2: (the model before, after, the trainer)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = [{"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels)]

    def run(wrap=lambda trainer: None, **options):
        encoder = ImageEncoder.from_pretrained(str(clip_folder))
        config = args(**options)
        model = encoder_stage(encoder, projector_stage(encoder, CONDITION_WIDTH, seed=0).projector, config)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
        trainer = DCRTrainer(model, config, denoiser, train_dataset=images)
        wrap(trainer)
        trainer.train()
        return before, model.state_dict(), trainer

    return run


SETTINGS = [
    {"objective": "dcr"},
    {"objective": "dcr", "contrast_space": "residual"},
    {"objective": "dcr", "contrast_space": "residual", "detach_negatives": True, "num_negatives": 2},
    {"objective": "dcr", "contrast_space": "sample"},
    {"objective": "reconstruction"},
    {"objective": "contrastive"},
    {"objective": "joint"},
    {"objective": "joint", "lambda_rec": 0.0},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_run_of_each_costs_what_is_announced_and_moves_every_adapter(train, options):
    before, after, trainer = train(**options)
    assert trainer.denoiser.evaluations == 2 * sum(trainer.args.unet_evaluations)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {name for name in after if not torch.equal(before[name], after[name])} == trained
    assert all("lora_" in name or name.endswith("base_layer.bias") for name in trained)
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 2 and all(math.isfinite(line["loss"]) for line in logged)
    assert ("noise_mse/own" in logged[0]) == trainer.args.asks_denoiser
    assert "keep_distance" not in logged[0]


def test_every_objective_was_run():
    assert {options["objective"] for options in SETTINGS} == OBJECTIVES.keys()


def test_a_joint_run_without_contrast_is_a_run_of_reconstruction_to_the_last_bit(train):
    _, found, _ = train(objective="joint", lambda_con=0.0)
    _, expected, _ = train(objective="reconstruction")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_keep_distance_by_hand():
    embeddings, originals = torch.tensor([[3.0, 0], [1, 1]]), torch.tensor([[1.0, 0], [0, 2]])
    assert keep_distance(embeddings, originals).item() == pytest.approx((0 + 1 - math.sqrt(0.5)) / 2, rel=1e-6)


@pytest.mark.parametrize("lora_rank", [16, 0])
def test_keep_weight_holds_the_encoder_where_it_was(train, clip_folder, lora_rank):
    before_training = ImageEncoder.from_pretrained(str(clip_folder)).eval()
    calls = []

    def record(trainer):
        original = trainer.model.encoder.original

        def recording(images):
            found = original(images)
            # Whatever the trained weights are by now, and without dropout.
            torch.testing.assert_close(found, before_training(images))
            assert not found.requires_grad
            calls.append(len(images))
            return found

        trainer.model.encoder.original = recording

    options = {"objective": "contrastive", "lora_rank": lora_rank, "max_steps": 6, "lora_dropout": 0.0}
    options |= {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}
    distances = {}
    for weight in (0.0, 50.0):
        _, _, trainer = train(record, keep_weight=weight, **options)
        encoder = trainer.model.encoder.eval()
        images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        distances[weight] = keep_distance(encoder(images), before_training(images)).item()
        assert all(parameter.requires_grad for n, parameter in encoder.named_parameters() if "lora_" in n)
        assert (encoder.frozen_copy is None) == (not weight)
    assert calls == [4] * 6  # once for each image and none for its view; never without the weight
    assert distances[50.0] < 0.5 * distances[0.0]


def test_keep_weight_adds_the_distance(train):
    """Adapters begin as nothing, so the distance of the first step is 0."""
    _, _, trainer = train(objective="contrastive", keep_weight=2.0, max_steps=3, lora_dropout=0.0)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[0]["keep_distance"] == pytest.approx(0, abs=1e-6) and lines[2]["keep_distance"] > 1e-5
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/contrastive"] + 2 * line["keep_distance"], rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ({}, {"objective": "drc"}, "--objective 'drc' is unknown; there are dcr, reconstruction"),
        ({"stage1_objective": "mse"}, {}, "--stage1_objective 'mse' is unknown"),
        ({}, {"objective": "contrastive"}, "the objective contrastive gives it no gradient. Give --stage 2"),
        ({"stage": "1"}, {"objective": "contrastive"}, "gives it no gradient"),
        ({}, {"objective": "joint", "lambda_rec": 0.0}, "joint with --lambda_rec 0 gives it no gradient"),
        ({"stage": "2", "stage1_objective": "dcr"}, {}, "--stage1_objective is for stage 1"),
        ({"stage": "1"}, {"keep_weight": 1.0}, "--keep_weight guards the encoder"),
        ({}, {"lambda_con": 0.5}, "--lambda_con is for --objective joint and would change nothing for dcr"),
        ({}, {"objective": "reconstruction", "contrast_space": "sample"}, "--contrast_space is for --objective dcr"),
        ({"stage": "2"}, {"objective": "joint", "num_negatives": 1}, "--num_negatives is for --objective dcr"),
        ({}, {"objective": "reconstruction", "anchor_weight": 1.0}, "--anchor_weight is for --objective dcr"),
        (
            {},
            {"objective": "joint", "negative_weighting": "similarity"},
            "--negative_weighting is for --objective dcr",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(args, recipe, options, message):
    with pytest.raises(ValueError, match=message):
        check(Recipe(encoder="owner/clip", **recipe), args(**options))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ({"stage": "2"}, {"objective": "contrastive"}),
        ({"stage1_objective": "reconstruction"}, {"objective": "contrastive", "keep_weight": 1.0}),
        ({"stage1_objective": "dcr"}, {"objective": "joint", "num_negatives": 2, "lambda_rec": 0.0}),
        ({"stage1_objective": "reconstruction"}, {"contrast_space": "residual"}),
    ],
)
def test_options_that_go_together_are_not(args, recipe, options):
    check(Recipe(encoder="owner/clip", **recipe), args(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_rec": -1.0}, "--lambda_rec is -1.0"),
        ({"keep_weight": -0.1}, "--keep_weight is -0.1"),
        ({"anchor_weight": -1.0}, "--anchor_weight is -1.0"),
        ({"lambda_rec": 0.0, "lambda_con": 0.0}, "--lambda_rec and --lambda_con are both 0"),
        ({"contrast_space": "sample", "noise_target": "velocity"}, "--contrast_space sample takes the target"),
    ],
)
def test_values_that_cannot_be_are_refused(args, options, message):
    with pytest.raises(ValueError, match=message):
        args(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "reconstruction"}, (16, LOGGED)),
        ({"objective": "joint"}, (16, LOGGED)),
        ({"objective": "joint", "lambda_rec": 0.0}, (0, 0)),
        ({"objective": "contrastive"}, (0, 0)),
        ({"contrast_space": "velocity"}, (272, 0)),
        ({"contrast_space": "residual"}, (272, 16)),
        ({"contrast_space": "residual", "detach_negatives": True}, (32, 256)),
    ],
)
def test_evaluations_that_are_announced(args, options, expected):
    assert args(per_device_train_batch_size=16, **options).unet_evaluations == expected
