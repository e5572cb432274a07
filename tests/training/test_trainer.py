import json
import math

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dcr_hf import DCRTrainer, FrozenDenoiser
from dcr_hf.models.condition import ConditionModel, Encoded
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector
from dcr_hf.objectives import Diffused, Settings, dcr
from dcr_hf.training.resumable import NonFiniteLossError
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.images import photographs
from helpers.runs import batch_of_conditions, short_run
from helpers.tiny_models import CONDITION_WIDTH


def photo_items(count):
    images = [image.resize((32, 32)) for image in photographs(count, side=200)]
    return [
        {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1), "key": str(i), "skipped": []}
        for i, image in enumerate(images)
    ]


@pytest.fixture
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder))


@pytest.fixture
def encoder(clip_folder):
    return ImageEncoder.from_pretrained(str(clip_folder))


def config(folder, **options):
    return short_run(folder, **({"learning_rate": 1e-3} | options))


def stage(name, encoder, args):
    model = projector_stage(encoder, CONDITION_WIDTH, seed=0)
    return model if name == "stage1" else encoder_stage(encoder, model.projector, args)


def snapshot(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(module, before):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_stage_1_moves_the_projector_and_nothing_else(encoder_folders, denoiser, tmp_path, family):
    model = stage("stage1", ImageEncoder.from_pretrained(str(encoder_folders[family])), None)
    before, frozen = snapshot(model), snapshot(denoiser)
    DCRTrainer(model, config(tmp_path), denoiser, train_dataset=photo_items(8)).train()
    assert moved(model, before) == {name for name in before if name.startswith("projector.")}
    assert moved(denoiser, frozen) == set()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_stage_2_moves_every_lora_tensor_and_bias_and_nothing_else(encoder_folders, denoiser, tmp_path, family):
    args = config(tmp_path)
    model = stage("stage2", ImageEncoder.from_pretrained(str(encoder_folders[family])), args)
    before, frozen = snapshot(model), snapshot(denoiser)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.endswith("base_layer.bias") for name in trained)
    DCRTrainer(model, args, denoiser, train_dataset=photo_items(8)).train()
    assert moved(model, before) == trained
    assert moved(denoiser, frozen) == set()


def test_a_frozen_encoder_stays_in_eval_mode_and_an_adapted_one_does_not(encoder):
    model = stage("stage1", encoder, None)
    model.train()
    assert not any(module.training for module in model.encoder.modules()) and model.projector.training
    model = stage("stage2", encoder, config("unused"))
    model.train()
    assert any(module.training for name, module in model.encoder.named_modules() if "lora_dropout" in name)


class Gradients(TrainerCallback):
    """The gradient that the optimizer is about to use, at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


def test_accumulation_averages_the_gradients_of_its_batches(encoder, denoiser, tmp_path):
    model, gradients = stage("stage1", encoder, None), Gradients()
    of_batches = []

    class Recording(DCRTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            of_batches.append(
                dict(zip(trained, torch.autograd.grad(loss, trained.values(), retain_graph=True), strict=True))
            )
            return loss

    args = config(tmp_path, gradient_accumulation_steps=4, max_steps=1, max_grad_norm=0)
    Recording(model, args, denoiser, train_dataset=photo_items(16), callbacks=[gradients]).train()
    assert len(of_batches) == 4 and len(gradients.steps) == 1
    for name, found in gradients.steps[0].items():
        expected = torch.stack([batch[name] for batch in of_batches]).mean(dim=0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_the_log_holds_what_is_worth_knowing(encoder, denoiser, tmp_path):
    items = photo_items(8)
    items[0]["skipped"] = [("truncated", "7"), ("not an image", "9")]
    args = config(tmp_path, max_steps=4, logging_steps=2, gradient_accumulation_steps=2)
    trainer = DCRTrainer(stage("stage1", encoder, None), args, denoiser, train_dataset=items)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    expected = {"cosine/view", "cosine/target", "cosine/negative", "cosine/hardest_negative", "nearest_is_positive"}
    expected |= {"noise_mse/own", "noise_mse/view", "noise_mse/other", "condition_norm"}
    expected |= {"images_per_second", "unet_evaluations_per_second", "skipped_images"}
    assert all(expected <= line.keys() for line in lines)
    last = lines[-1]
    # 8 batches of 4 from 8 images: the marked one was seen 4 times.
    assert (last["skipped_images"], last["skipped/truncated"], last["skipped/not_an_image"]) == (8, 4, 4)
    assert last["unet_evaluations_per_second"] / last["images_per_second"] == pytest.approx(
        5, rel=1e-3
    )  # (16 + 4) / 4
    assert last["cosine/negative"] <= last["cosine/hardest_negative"] <= 1


def test_logged_metrics_are_means_over_the_window(encoder, denoiser, tmp_path):
    seen = []

    class Recording(DCRTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            metrics = self.metrics_log._metrics[-1]
            seen.append({"loss": loss.item()} | {name: value.item() for name, value in metrics.items()})
            return loss

    args = config(tmp_path, max_steps=3, logging_steps=3, gradient_accumulation_steps=2)
    trainer = Recording(stage("stage1", encoder, None), args, denoiser, train_dataset=photo_items(8))
    trainer.train()
    [line] = [line for line in trainer.state.log_history if "loss" in line]
    assert len(seen) == 6
    for name in seen[0]:
        assert line[name] == pytest.approx(np.mean([step[name] for step in seen]), rel=1e-4), name


def test_fidelity_is_the_noise_error_under_three_conditions(encoder, sd_v_folder):
    denoiser = FrozenDenoiser.from_pretrained(str(sd_v_folder))
    model = stage("stage1", encoder, None)
    images = torch.stack([item["image"] for item in photo_items(3)]) / 255
    diffused = Diffused.draw(denoiser, images)
    with torch.no_grad():
        conditions, views = model(images).conditions, model(images.flip(-1)).conditions
        metrics = dcr(denoiser, batch_of_conditions(diffused, conditions, views), Settings()).metrics
        n, t = diffused.noisy_latents, diffused.timesteps
        alpha = denoiser.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        for name, used in {"own": conditions, "view": views, "other": conditions.roll(-1, dims=0)}.items():
            noise = alpha.sqrt() * denoiser.predict(n, t, used) + (1 - alpha).sqrt() * n
            expected = (noise - diffused.noise).square().mean()
            assert metrics[f"noise_mse/{name}"].item() == pytest.approx(expected.item(), rel=1e-4)
    empty = denoiser.empty_prompt.norm(dim=-1).mean()
    assert metrics["condition_norm"].item() == pytest.approx((conditions.norm(dim=-1).mean() / empty).item())


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_checkpoints_hold_what_is_trained_and_can_be_resumed(clip_folder, sd_folder, tmp_path, name):
    def run(folder, max_steps, resume=None):
        encoder, denoiser = (
            ImageEncoder.from_pretrained(str(clip_folder)),
            FrozenDenoiser.from_pretrained(str(sd_folder)),
        )
        args = config(folder, max_steps=max_steps, save_strategy="steps", save_steps=2)
        model = stage(name, encoder, args)
        DCRTrainer(model, args, denoiser, train_dataset=photo_items(8)).train(resume_from_checkpoint=resume)
        return snapshot(model)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "halves", 2)
    checkpoint = tmp_path / "halves" / "checkpoint-2"
    resumed = run(tmp_path / "halves", 4, resume=str(checkpoint))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)

    weights = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*.safetensors")}
    assert weights == {{"stage1": "projector/model.safetensors", "stage2": "adapter_model.safetensors"}[name]}
    assert not list(checkpoint.rglob("*.bin"))
    trained = sum(
        tensor.nbytes for key, tensor in whole.items() if ("projector" if name == "stage1" else "lora_") in key
    )
    assert sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors")) < trained * 1.2 + 20_000
    assert json.loads((checkpoint / "training_args.json").read_text())["temperature"] == 0.1


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_how_often_is_saved_and_logged_changes_nothing(clip_folder, sd_folder, tmp_path, name):
    def run(folder, **options):
        model_args = config(folder, max_steps=4, **options)
        model = stage(name, ImageEncoder.from_pretrained(str(clip_folder)), model_args)
        denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
        DCRTrainer(model, model_args, denoiser, train_dataset=photo_items(8)).train()
        return snapshot(model)

    often = run(tmp_path / "often", save_strategy="steps", save_steps=1, logging_steps=1)
    never = run(tmp_path / "never", logging_steps=3)
    assert all(torch.equal(often[key], never[key]) for key in often)


def test_a_non_finite_loss_stops_the_run_and_the_last_checkpoint_stays(encoder, denoiser, tmp_path):
    class Breaking(DCRTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if self.state.global_step == 4:
                model.projector.layers[1].weight.data.fill_(float("nan"))
            return super().compute_loss(model, inputs, *args, **kwargs)

    args = config(tmp_path, max_steps=20, logging_steps=100, save_strategy="steps", save_steps=2)
    trainer = Breaking(stage("stage1", encoder, None), args, denoiser, train_dataset=photo_items(8))
    with pytest.raises(NonFiniteLossError, match="not finite at step 5"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    kept = Projector.from_pretrained(tmp_path / "checkpoint-4" / "projector")
    assert all(parameter.isfinite().all() for parameter in kept.parameters())


@pytest.fixture
def pretrained_denoiser(denoiser):
    """The tiny UNet after 150 steps of noise prediction on the 8 photographs, each under a condition of its own: an
    untrained one predicts nothing that could be near the target."""
    torch.manual_seed(0)
    images = torch.stack([item["image"] for item in photo_items(8)]) / 255
    conditions = torch.randn(8, CONDITION_WIDTH)
    denoiser.unet.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(denoiser.unet.parameters(), lr=4e-3)
    for _ in range(150):
        batch = torch.randint(8, (16,))
        latents, timesteps = denoiser.encode(images[batch]), denoiser.draw_timesteps(16)
        noise = torch.randn_like(latents)
        noisy = denoiser.add_noise(latents, noise, timesteps)
        tokens = denoiser.empty_prompt + conditions[batch][:, None]
        loss = (denoiser.unet(noisy, timesteps, tokens).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoiser.unet.requires_grad_(False).eval()
    return denoiser


def test_stage_1_overfits_eight_images(encoder, pretrained_denoiser, tmp_path):
    args = config(tmp_path, per_device_train_batch_size=8, max_steps=175, learning_rate=2e-2, logging_steps=25)
    model = stage("stage1", encoder, args)
    trainer = DCRTrainer(model, args, pretrained_denoiser, train_dataset=photo_items(8))
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    alike = math.log(8 + 1)  # 2.197, the loss when all candidates look alike
    assert lines[-1]["loss"] < alike - 0.4
    assert lines[-1]["cosine/negative"] < min(lines[-1]["cosine/view"], lines[-1]["cosine/target"])
    assert lines[-1]["nearest_is_positive"] > 0.95


def test_gradient_checkpointing_of_the_encoder_changes_nothing(clip_folder, sd_folder, tmp_path):
    def run(**options):
        encoder, denoiser = (
            ImageEncoder.from_pretrained(str(clip_folder)),
            FrozenDenoiser.from_pretrained(str(sd_folder)),
        )
        args = config(tmp_path, max_steps=2, lora_dropout=0.0, **options)
        model = stage("stage2", encoder, args)
        DCRTrainer(model, args, denoiser, train_dataset=photo_items(8)).train()
        return snapshot(model)

    plain, recomputed = run(), run(gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("patch_keep_ratio", [None, 0.5])
def test_conditions_come_only_from_the_model_that_is_handed_in(encoder, denoiser, tmp_path, patch_keep_ratio):
    """DDP synchronises what goes through its wrapper: nothing trainable may be reached around it."""
    calls = []

    class Wrapper(torch.nn.Module):
        def __init__(self, model: ConditionModel):
            super().__init__()
            self.module = model

        def forward(self, images, originals):
            calls.append((images.shape, originals))
            return Encoded(*(None if made is None else made.detach() for made in self.module(images)))

    model = projector_stage(encoder, CONDITION_WIDTH, 0, patch_keep_ratio)
    trainer = DCRTrainer(model, config(tmp_path), denoiser, train_dataset=photo_items(8))
    images = torch.stack([item["image"] for item in photo_items(4)]) / 255
    loss = trainer.compute_loss(Wrapper(model), {"images": images, "skipped": [], "position": None})
    assert calls == [((8, 3, 32, 32), 0)]  # images and views in one pass
    assert not loss.requires_grad
