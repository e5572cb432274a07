"""recipes/released.yaml beside a plain re-statement of the released code's step: loss, gradients, one AdamW step."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.nn import functional as F
from transformers import AutoModel, CLIPTextModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dcr_hf.cli import parse
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector
from dcr_hf.training.plan import plan_stages
from dcr_hf.training.trainer import DCRTrainer
from helpers.tiny_models import CONDITION_WIDTH, EMBEDDING_WIDTH

RECIPES = Path(__file__).parents[2] / "recipes"
BATCH, RATE, DECAY, TEMPERATURE = 3, 1e-3, 0.01, 0.1


@pytest.fixture
def drawn():
    """Images, views and what the step draws, in float64."""
    draw = torch.Generator().manual_seed(5)
    images, views = torch.rand(2, BATCH, 3, 32, 32, generator=draw, dtype=torch.float64)
    latents, noise = torch.randn(2, BATCH, 4, 4, 4, generator=draw, dtype=torch.float64)
    return images, views, latents, noise, torch.tensor([20, 480, 930])


def plan_of(stage, encoder, denoiser, output, projector):
    recipe = runpy.run_path(str(RECIPES / "openai_vitl.py"))
    words = ["--config", str(RECIPES / "released.yaml"), "--encoder", encoder, "--denoiser", denoiser, "--use_cpu"]
    words += [
        "--output_dir",
        output,
        "--stage",
        stage,
        "--per_device_train_batch_size",
        BATCH,
        "--stage1_max_steps",
        1,
    ]
    words += ["--stage1_learning_rate", RATE, "--stage2_learning_rate", RATE, "--max_grad_norm", 0]
    words += ["--report_to", "none", "--lora_dropout", 0, "--gradient_accumulation_steps", 1, "--pair_chunk_size", 0]
    words += ["--projector", projector] if stage == "2" else []
    given, args = parse(recipe["RECIPE"], recipe["TRAINING"], [*map(str, words)])
    args.bf16 = False
    return plan_stages(given, args)[0]


def our_step(plan, encoder, denoiser, drawn):
    """One step of the Trainer: (loss, gradients, weights) by name of the trained parameter."""
    images, views, latents, noise, timesteps = drawn
    frozen = FrozenDenoiser.from_pretrained(
        denoiser, torch.float64, plan.args.noise_target, 0, plan.args.mask_prompt_padding
    ).double()
    frozen.encode = lambda _: latents
    frozen.draw_timesteps = lambda _: timesteps
    model = plan.build_model(ImageEncoder.from_pretrained(encoder), frozen.condition_width).double()
    shake_adapters(model.named_parameters())
    trainer = DCRTrainer(model=model, args=plan.args, denoiser=frozen, train_dataset=[0])
    trainer.view = lambda _: views
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda _: noise)
        model.train()
        loss = trainer.compute_loss(model, {"images": images})
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    trainer.optimizer.step()
    return loss.item(), gradients, {name: parameter.detach().clone() for name, parameter in trained.items()}


def shake_adapters(parameters):
    """B begins at zero, which would hide the gradient of A."""
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_B" in name and parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.05)


def released_condition(encoder, weights, images):
    """The released code's encoder and projector: OpenAI's statistics, W x + b with W = W0 + B A (rank = alpha)."""
    mean, std = (torch.tensor(each).double().view(1, 3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    base = AutoModel.from_pretrained(encoder, dtype=torch.float64)
    merged = dict(base.named_parameters())
    start = "encoder.model.base_model.model."
    for name, value in weights.items():
        if name.endswith("lora_A.default.weight"):
            layer = name.removeprefix(start).removesuffix(".lora_A.default.weight")
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + weights[name.replace("lora_A", "lora_B")] @ value
        if name.endswith("base_layer.bias"):
            merged[name.removeprefix(start).replace("base_layer.", "")] = value
    pixels = {"pixel_values": (images - mean) / std}
    merged = {f"model.{name}": value for name, value in merged.items()}
    features = torch.func.functional_call(_Features(base), merged, (), pixels)
    layers = {name.removeprefix("projector.layers."): value for name, value in weights.items()}
    hidden = F.layer_norm(features, features.shape[-1:], layers["0.weight"], layers["0.bias"])
    hidden = F.gelu(F.linear(hidden, layers["1.weight"], layers["1.bias"]))
    return F.linear(hidden, layers["3.weight"], layers["3.bias"])


class _Features(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output


def released_loss(denoiser, conditions, view_conditions, latents, noise, timesteps):
    """E with its padding masked, the velocity as target, InfoNCE by exp, ratio, log."""
    tokenizer = CLIPTokenizer.from_pretrained(denoiser, subfolder="tokenizer")
    text = CLIPTextModel.from_pretrained(denoiser, subfolder="text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(denoiser, subfolder="unet").double()
    scheduler = DDPMScheduler.from_pretrained(denoiser, subfolder="scheduler")
    tokens = tokenizer("", padding="max_length", max_length=77, return_tensors="pt")
    empty = text(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.detach().double()
    alphas = scheduler.alphas_cumprod.double()[timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents

    def predict(image, condition):
        return unet(noisy[image][None], timesteps[image], empty + condition).sample.flatten()

    total = 0
    for anchor in range(BATCH):
        own = predict(anchor, conditions[anchor])
        positives = [predict(anchor, view_conditions[anchor]), velocity[anchor].flatten()]
        others = [predict(anchor, conditions[other]) for other in range(BATCH) if other != anchor]
        similar = [torch.exp(F.cosine_similarity(own, each, dim=0) / TEMPERATURE) for each in (*positives, *others)]
        total += sum(-torch.log(each / sum(similar)) for each in similar[:2]) / 2
    return total / BATCH


def released_step(plan, encoder, denoiser, drawn):
    """As `our_step`; the parameters are ours in name and beginning, and nothing else."""
    images, views, latents, noise, timesteps = drawn
    model = plan.build_model(ImageEncoder.from_pretrained(encoder), CONDITION_WIDTH).double()
    shake_adapters(model.named_parameters())
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name: weights[name].requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
    conditions = released_condition(encoder, weights, torch.cat([images, views]))
    loss = released_loss(denoiser, *conditions.chunk(2), latents, noise, timesteps)
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    after = {}
    for name, gradient in gradients.items():  # AdamW by hand: at the first step both corrected moments are g and g * g
        decayed = weights[name].detach() * (1 - RATE * DECAY)
        after[name] = decayed - RATE * gradient / (gradient.abs() + 1e-8)
    return loss.item(), gradients, after


@pytest.mark.parametrize("stage", ["1", "2"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_preset_is_the_released_codes_step(request, tmp_path, drawn, sd_folder, family, stage):
    encoder = str(request.getfixturevalue(f"{family}_folder"))
    torch.manual_seed(3)
    Projector(EMBEDDING_WIDTH[family], CONDITION_WIDTH).save_pretrained(tmp_path / "projector")
    plan = plan_of(stage, encoder, str(sd_folder), tmp_path / "out", tmp_path / "projector")
    assert plan.args.get_warmup_steps(100) == 0 and math.isclose(plan.args.weight_decay, DECAY)
    loss, gradients, weights = our_step(plan, encoder, str(sd_folder), drawn)
    theirs = released_step(plan, encoder, str(sd_folder), drawn)
    assert loss == pytest.approx(theirs[0], abs=1e-6)
    assert gradients.keys() == theirs[1].keys() and len(gradients) > 5
    biases = [name for name in gradients if name.endswith("base_layer.bias")]
    assert bool(biases) == (stage == "2")
    assert any("head.attention.out_proj" in name for name in biases) == (stage == "2" and family == "siglip")
    for name in gradients:
        torch.testing.assert_close(gradients[name], theirs[1][name], atol=1e-6, rtol=1e-6, msg=name)
        torch.testing.assert_close(weights[name], theirs[2][name], atol=1e-6, rtol=1e-6, msg=name)
