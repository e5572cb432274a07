"""The gradient conflict: against gradients by hand, without a trace in training, complete after an interruption."""

import json
import math

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import TrainerControl, TrainerState

from dcr_hf import DCRConfig, DCRTrainer, FrozenDenoiser, Recipe
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.gradient_conflict import COSINE, LAYER, NEGATIVE_SHARE, NORM, GradientConflict, layer_of
from dcr_hf.training.gradient_conflict_plot import write_conflict
from dcr_hf.training.option_checks import check_objectives
from dcr_hf.training.plan import needs_projector, plan_stages
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.programs import TORCHRUN, WORKERS, run_program
from helpers.runs import short_run
from helpers.tiny_models import CONDITION_WIDTH


class TwoParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.projector = nn.ParameterDict({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        self.frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)


class Arguments:
    world_size = 1


def finish(conflict, history):
    conflict.on_step_end(Arguments(), TrainerState(log_history=history), TrainerControl())


def test_the_cosine_by_hand():
    model, lines = TwoParameters(), []
    a, b = model.projector["a"], model.projector["b"]
    conflict = GradientConflict(model, every=1, log=lines.append)
    # Two batches. Gradients (da, db): first loss (2a, 1) = (2, 1) and (1, 0); second (-b, -a) = (-2, -1) and (0, 3).
    conflict.add({"reconstruction": a**2 + b, "contrastive": -a * b})
    conflict.add({"reconstruction": a + 0 * b, "contrastive": 3 * b})
    finish(conflict, history=[{COSINE: -0.5}, {"loss": 1.0}, {COSINE: 0.1}])
    [line] = lines
    # Sums (3, 1) and (-2, 2): -6 + 2 over the root of 10 * 8.
    assert line[COSINE] == pytest.approx(-4 / math.sqrt(80))
    assert line[NORM + "reconstruction"] == pytest.approx(math.sqrt(10) / 2)
    assert line[NORM + "contrastive"] == pytest.approx(math.sqrt(8) / 2)
    assert (line[LAYER + "projector.a"], line[LAYER + "projector.b"]) == pytest.approx((-1, 1))
    assert line[NEGATIVE_SHARE] == pytest.approx(2 / 3)
    assert a.grad is None and b.grad is None
    finish(conflict, history=[])
    assert len(lines) == 1  # nothing was added since


def test_a_layer_whose_gradient_vanishes_has_no_cosine():
    model, lines = TwoParameters(), []
    a, b = model.projector["a"], model.projector["b"]
    conflict = GradientConflict(model, every=1, log=lines.append)
    conflict.add({"reconstruction": a * b, "contrastive": a})
    finish(conflict, history=[])
    assert lines[0][COSINE] == pytest.approx(2 / math.sqrt(5)) and LAYER + "projector.b" not in lines[0]


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("rank", [4, 0])
def test_every_parameter_belongs_to_a_layer_with_a_name(encoder_folders, family, rank, tmp_path):
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[family]))
    args = DCRConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, lora_rank=rank)
    model = encoder_stage(encoder, projector_stage(encoder, CONDITION_WIDTH, seed=0).projector, args)
    names = {layer_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    last = "visual_projection" if family == "clip" else "head"
    beside = {"clip": {"embeddings", "pre_layrnorm", "post_layernorm"}, "siglip": {"embeddings", "post_layernorm"}}
    assert names == {"0", "1", last} | (set() if rank else beside[family])
    model.projector.requires_grad_(True)
    assert {layer_of(n) for n, _ in model.named_parameters() if n.startswith("projector")} == {
        "projector.0",
        "projector.1",
        "projector.3",
    }


@pytest.fixture
def train(clip_folder, sd_folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = [{"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels)]

    def run(stage="stage2", **options):
        args = short_run(tmp_path, **({"gradient_accumulation_steps": 2} | options))
        model = projector_stage(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, seed=0)
        if stage == "stage2":
            model = encoder_stage(model.encoder, model.projector, args)
        trainer = DCRTrainer(model, args, FrozenDenoiser.from_pretrained(str(sd_folder)), train_dataset=images)
        trainer.train()
        lines = [line for line in trainer.state.log_history if COSINE in line]
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, lines, trainer

    return run


CASES = [
    ("stage2", "dcr", {}),
    ("stage2", "dcr", {"pair_chunk_size": 6, "gradient_checkpointing": True}),
    ("stage2", "joint", {}),
    ("stage2", "joint", {"lambda_con": 0.0}),
    ("stage2", "reconstruction", {"keep_weight": 1.0}),
    ("stage2", "contrastive", {}),
    ("stage1", "dcr", {}),
]


def loss_steps(trainer):
    return [line["step"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(("stage", "objective", "options"), CASES)
def test_measuring_changes_no_bit_of_what_is_trained(train, stage, objective, options):
    """With dropout, two accumulated batches and gradients that are clipped."""
    expected, none, plain = train(stage, objective=objective, **options)
    found, lines, measured = train(stage, objective=objective, log_gradient_conflict_every=2, **options)
    assert loss_steps(measured) == loss_steps(plain) == [1, 2, 3]
    assert none == [] and [line["step"] for line in lines] == [2]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    losses = ["view", "target"] if objective == "dcr" else ["reconstruction", "contrastive"]
    assert [key.removeprefix(NORM) for key in lines[0] if key.startswith(NORM)] == losses
    assert -1 <= lines[0][COSINE] <= 1 and lines[0][NEGATIVE_SHARE] in (0, 1)


@pytest.mark.parametrize("objective", ["reconstruction", "contrastive", "joint"])
def test_the_measured_gradients_are_those_of_runs_with_one_loss_alone(train, objective):
    """The first step's gradient of each loss, by the norm that Trainer logs before it clips."""
    _, lines, _ = train(objective=objective, log_gradient_conflict_every=1, lora_dropout=0.0, max_steps=1)
    _, _, alone = train(objective=objective, lora_dropout=0.0, max_steps=1)
    [line] = [line for line in alone.state.log_history if "grad_norm" in line]
    first, second, cosine = lines[0][NORM + "reconstruction"], lines[0][NORM + "contrastive"], lines[0][COSINE]
    expected = {
        "reconstruction": first,
        "contrastive": second,
        "joint": math.sqrt(first**2 + second**2 + 2 * first * second * cosine),
    }[objective]
    assert line["grad_norm"] == pytest.approx(expected, rel=1e-4)


def test_gradients_of_all_processes_count_and_training_does_not_change(
    clip_folder, sd_folder, shards_folder, tmp_path
):
    worker = WORKERS / "distributed_worker.py"
    for stage in ("joint", "conflict"):
        done = run_program(*TORCHRUN, worker, clip_folder, sd_folder, shards_folder, tmp_path, stage)
        assert done.returncode == 0, done.stderr
    without, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("joint-rank0", "conflict-rank0", "conflict-rank1")
    )
    assert all(torch.equal(a, b) for a, b in zip(without["weights"], first["weights"], strict=True))
    assert not without["conflict"] and len(first["conflict"]) == 3
    # Previews were drawn on the way too, by one of the two.
    assert len(list((tmp_path / "conflict" / "preview").glob("step-*.png"))) == 3
    assert first["conflict"] == second["conflict"]
    for step, line in enumerate(first["conflict"]):
        sums = [
            sum(torch.cat([g.flatten() for g in record["terms"][step][i]]) for record in (first, second))
            for i in (0, 1)
        ]
        assert line[COSINE] == pytest.approx(torch.cosine_similarity(*sums, dim=0).item(), abs=1e-5)


def history(steps):
    return [
        {"step": step, COSINE: (-1) ** step * step / 10, NORM + "view": 1.0, NORM + "target": 2.0}
        | ({LAYER + "2": -0.2} if step > 1 else {})
        | {LAYER + "visual_projection": 0.3, LAYER + "10": 0.1, LAYER + "embeddings": 0.2}
        for step in range(1, steps + 1)
    ] + [{"step": steps, "loss": 1.0}]


def test_the_files_hold_every_step_and_the_share_below_zero(tmp_path):
    write_conflict(tmp_path, history(5))
    facts = json.loads((tmp_path / "gradient_conflict.json").read_text())
    assert facts["losses"] == ["target", "view"] and facts["norms"]["target"] == [2.0] * 5
    assert facts["steps"] == [1, 2, 3, 4, 5] and facts["cosines"] == [-0.1, 0.2, -0.3, 0.4, -0.5]
    assert facts["negative_share"] == 0.6 and facts["mean_cosine"] == pytest.approx(-0.06)
    assert list(facts["layers"]) == ["embeddings", "2", "10", "visual_projection"]  # from the pixels on
    assert facts["layers"]["2"] == [None, -0.2, -0.2, -0.2, -0.2] and facts["layers"]["10"] == [0.1] * 5
    assert Image.open(tmp_path / "gradient_conflict.png").width > 800


def test_a_run_without_measurements_leaves_no_files(tmp_path):
    write_conflict(tmp_path, [{"step": 1, "loss": 1.0}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ({"stage": "1"}, {"objective": "reconstruction"}, "in stage 1 only dcr has two, not reconstruction"),
        ({}, {"log_gradient_conflict_every": -1}, "--log_gradient_conflict_every is -1"),
        ({}, {"fp16": True}, "complete gradients at their true scale"),
    ],
)
def test_where_it_cannot_be_measured_is_said_first(tmp_path, recipe, options, message):
    options = {"log_gradient_conflict_every": 5} | options
    with pytest.raises(ValueError, match=message):
        chosen = Recipe(encoder="owner/clip", **recipe)
        args = DCRConfig(output_dir=str(tmp_path), use_cpu=True, **options)
        check_objectives(chosen, args, plan_stages(chosen, args))


@pytest.mark.parametrize("strategy", ["DEEPSPEED", "FSDP"])
def test_divided_gradients_are_refused(tmp_path, monkeypatch, strategy):
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    with pytest.raises(ValueError, match="Leave it out under DeepSpeed, FSDP"):
        DCRConfig(output_dir=str(tmp_path), use_cpu=True, log_gradient_conflict_every=5)


def test_a_contrast_alone_is_measured_through_a_trained_projector(tmp_path):
    recipe = Recipe(encoder="owner/clip", stage="2")
    options = {"output_dir": str(tmp_path), "use_cpu": True, "objective": "contrastive"}
    assert not needs_projector(recipe, DCRConfig(**options))
    assert needs_projector(recipe, DCRConfig(log_gradient_conflict_every=5, **options))
