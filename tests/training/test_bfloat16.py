"""What runs on a GPU by default, on a CPU: bfloat16 in both stages and with every option, and compiled code.

The bounds: bfloat16 has 8 bits, each operation errs by up to 4e-3. Losses stay within 1 % of float32's and the first
step's gradient within 10 %; found were at most 0.5 % and 5.4 %.
"""

import shutil

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from transformers import TrainerCallback

from dcr_hf import DCRTrainer, FrozenDenoiser, Recipe, run
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.stages import encoder_stage, end_to_end_stage, projector_stage
from helpers.images import photographs
from helpers.runs import options_of_a_run, short_run
from helpers.tiny_models import CONDITION_WIDTH

HALF = {"bf16": True, "denoiser_dtype": "bfloat16"}
OPTIONS = {
    "plain": {},
    "patches": {"condition": "patches", "patch_keep_ratio": 0.25},
    "keep": {"keep_weight": 0.5},
    "preview": {"preview_steps": 2},
    "conflict": {"log_gradient_conflict_every": 1},
    "residual": {"contrast_space": "residual"},
    "joint": {"objective": "joint"},
    "full": {"lora_rank": 0},
    "full, keep": {"lora_rank": 0, "keep_weight": 0.5},
    "checkpointing": {"gradient_checkpointing": True},
    "chunks": {"pair_chunk_size": 5},
}
CASES = [(1, name) for name in ("plain", "patches", "conflict", "residual", "joint")]
CASES += [(2, name) for name in OPTIONS]
CASES += [("end_to_end", name) for name in ("plain", "patches")]


@pytest.fixture(scope="module")
def images():
    sized = [np.array(image.resize((32, 32))) for image in photographs(8, side=200)]
    pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in sized]
    return [{"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels)]


@pytest.fixture(autouse=True)
def same_latents(monkeypatch):
    """The same random numbers in both precisions: a latent that is sampled in bfloat16 takes others."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


class Gradients(TrainerCallback):
    """All gradients, as one vector, at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
        self.steps.append(torch.cat([gradient.flatten() for _, gradient in sorted(trained)]))


@pytest.fixture
def train(clip_folder, sd_folder, images, tmp_path):
    """Two steps of a stage; returns the trainer and its gradients."""

    def train(stage, half, **options):
        settings = {"max_steps": 2, "learning_rate": 1e-3, "lora_dropout": 0.0} | options
        args = short_run(tmp_path / ("half" if half else "full"), **(HALF if half else {}), **settings)
        denoiser = FrozenDenoiser.from_pretrained(
            str(sd_folder), args.denoiser_torch_dtype, pair_chunk_size=args.pairs_at_once
        )
        encoder = ImageEncoder.from_pretrained(str(clip_folder))
        if stage == "end_to_end":
            model = end_to_end_stage(encoder, CONDITION_WIDTH, args)
        else:
            model = projector_stage(encoder, CONDITION_WIDTH, args.seed, args.patch_ratio)
            model = encoder_stage(encoder, model.projector, args) if stage == 2 else model
        with torch.no_grad():  # an untrained projector's conditions are so small that rounding hides their differences
            model.projector.layers[-1].weight.mul_(30)
        gradients = Gradients()
        trainer = DCRTrainer(model, args, denoiser, train_dataset=images, callbacks=[gradients])
        trainer.train()
        return trainer, gradients.steps

    return train


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("stage", "name"), CASES)
def test_bfloat16_is_close_to_float32_and_what_is_trained_stays_float32(train, stage, name):
    exact, expected = train(stage, False, **OPTIONS[name])
    half, found = train(stage, True, **OPTIONS[name])
    assert half.accelerator.mixed_precision == "bf16" and half.denoiser.dtype == torch.bfloat16
    assert losses(half) == pytest.approx(losses(exact), rel=0.01) and losses(half) != losses(exact)
    assert len(losses(half)) > 0 and all(gradient.isfinite().all() for gradient in found)
    assert distance(found[0], expected[0]) < 0.1
    trained = [parameter for parameter in half.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in trained)
    state = [value for of_one in half.optimizer.state.values() for value in of_one.values()]
    assert len(state) >= 3 * len(trained) and {value.dtype for value in state} == {torch.float32}
    logged = [value for line in half.state.log_history for value in line.values() if isinstance(value, float)]
    assert np.isfinite(logged).all()
    if name == "preview":
        assert len(list((half.args.folder / "preview").glob("*.png"))) >= 1
    if name == "conflict":
        assert any("conflict" in key for line in half.state.log_history for key in line)


@pytest.mark.parametrize("stages", ["all", "end_to_end"])
def test_a_run_in_bfloat16_is_resumed_to_the_same_bits(clip_folder, sd_folder, shards_folder, tmp_path, stages):
    budget = {"stage1_max_steps": 3, "stage2_max_steps": 3, "stage1_learning_rate": 1e-3}
    recipe = Recipe(str(clip_folder), str(sd_folder), str(shards_folder), stage=stages, **budget)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_bad_fraction": 0.5}
    run.run(recipe, options_of_a_run(tmp_path, **HALF, **saving))
    weights = [*tmp_path.glob("*/*adapter_model.safetensors"), *tmp_path.glob("*/projector/model.safetensors")]
    weights += tmp_path.glob("clip-tiny-dcr/model.safetensors")
    assert len(weights) == 3
    expected = {path: load_file(path) for path in weights}
    for stage in tmp_path.glob("stage*"), tmp_path.glob("end_to_end"):
        for path in [path for folder in stage for path in folder.iterdir() if path.name != "checkpoint-2"]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for folder in tmp_path.glob("clip-tiny-dcr*"):
        shutil.rmtree(folder)
    run.run(recipe, options_of_a_run(tmp_path, **HALF, **saving))
    for path, tensors in expected.items():
        found = load_file(path)
        assert tensors.keys() == found.keys() and {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert all(torch.equal(found[name], tensors[name]) for name in tensors), path


@pytest.mark.parametrize("half", [False, True])
def test_compiled_through_the_trainer_it_is_the_same_step(train, monkeypatch, half):
    eager, expected = train(2, half)
    for name in ("BACKEND", "MODE"):  # transformers sets these for the process
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no" if name == "BACKEND" else "default")
    torch._dynamo.reset()
    compiled, found = train(2, half, torch_compile=True, torch_compile_backend="aot_eager")
    assert isinstance(compiled.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    assert compiled.denoiser._compiled
    # In bfloat16 compiled code keeps what it fuses in float32.
    assert losses(compiled) == pytest.approx(losses(eager), rel=0.01 if half else 1e-4)
    assert distance(found[0], expected[0]) < (0.1 if half else 1e-3)
