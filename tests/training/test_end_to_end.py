"""--stage end_to_end: projector and encoder together, each at its own learning rate, resumed and exported."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcr_hf import DCRTrainer, FrozenDenoiser, Recipe, run
from dcr_hf.export import export_run
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.results import has_encoder
from dcr_hf.training.option_checks import check_objectives
from dcr_hf.training.plan import END_TO_END, plan_stages
from dcr_hf.training.stage_results import put_in_place
from dcr_hf.training.stages import end_to_end_stage, projector_stage
from helpers.runs import options_of_a_run


@pytest.fixture
def recipe(clip_folder, sd_folder, shards_folder):
    return Recipe(
        encoder=str(clip_folder),
        denoiser=str(sd_folder),
        train_data=str(shards_folder),
        stage="end_to_end",
        stage1_max_steps=7,
        stage1_learning_rate=3e-3,
        stage2_max_steps=4,
        stage2_learning_rate=1e-3,
    )


def config(folder, **options):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_bad_fraction": 0.5, "warmup_steps": 0}
    return options_of_a_run(folder, **(saving | options))


@pytest.mark.parametrize(("given", "of_projector"), [({}, 3e-3), ({"projector_learning_rate": 5e-3}, 5e-3)])
def test_both_are_trained_each_at_its_own_learning_rate(recipe, tmp_path, given, of_projector):
    run_args = config(tmp_path, weight_decay=0.0, max_grad_norm=0.0, lora_dropout=0.0, **given)
    recipe.stage = END_TO_END
    args = plan_stages(recipe, run_args)[0].args
    assert (args.max_steps, args.learning_rate, args.projector_learning_rate) == (4, 1e-3, of_projector)
    args.max_steps, args.save_strategy = 1, "no"
    denoiser = FrozenDenoiser.from_pretrained(recipe.denoiser)
    model = end_to_end_stage(ImageEncoder.from_pretrained(recipe.encoder), denoiser.condition_width, args)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    images = [
        {"image": torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), "key": str(number), "skipped": []}
        for number in range(4)
    ]
    DCRTrainer(model, args, denoiser, train_dataset=images).train()
    for name, parameter in model.named_parameters():
        change = (parameter - before[name]).abs().max().item()
        if "k_proj" in name and "bias" in name:
            continue  # a softmax does not see it: its gradient is rounding
        # AdamW's first step has the length of the learning rate; lora_A's gradient begins as 0.
        expected = (
            of_projector
            if name.startswith("projector.")
            else 1e-3
            if parameter.requires_grad and "lora_A" not in name
            else 0.0
        )
        assert change == pytest.approx(expected, rel=0.01), name


def test_it_begins_with_stage_1s_projector(recipe, tmp_path):
    args = config(tmp_path)
    encoder = ImageEncoder.from_pretrained(recipe.encoder)
    expected = projector_stage(encoder, 32, args.seed).projector.state_dict()
    found = end_to_end_stage(encoder, 32, args).projector.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def weights(folder):
    files = ("adapter_model.safetensors", "projector/model.safetensors")
    return {file + name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def test_a_run_is_exported_and_goes_on_after_an_interruption_to_the_same_bits(recipe, tmp_path):
    run.run(recipe, config(tmp_path))
    assert (tmp_path / "clip-tiny-dcr-vision").is_dir()
    stage, expected = tmp_path / "end_to_end", weights(tmp_path / "end_to_end")
    assert not (tmp_path / "stage1").exists() and not (tmp_path / "stage2").exists()
    card = (tmp_path / "clip-tiny-dcr" / "README.md").read_text()
    assert "| end to end | 4 steps at 0.001, objective dcr, the projector at 0.003 |" in card
    exported = load_file(tmp_path / "clip-tiny-dcr" / "model.safetensors")
    for path in [*stage.iterdir(), *tmp_path.glob("clip-tiny-dcr*")]:
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.run(recipe, config(tmp_path))
    found = weights(stage)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again, _ = export_run(tmp_path, overwrite=True)
    assert all(torch.equal(tensor, exported[name]) for name, tensor in load_file(again / "model.safetensors").items())
    early, _ = export_run(tmp_path, checkpoint="checkpoint-2")
    assert early == tmp_path / "checkpoint-2" / "clip-tiny-dcr"
    assert all(torch.equal(tensor, exported[name]) for name, tensor in load_file(again / "model.safetensors").items())
    assert any(not torch.equal(tensor, exported[n]) for n, tensor in load_file(early / "model.safetensors").items())


def test_a_result_that_is_half_in_place_is_not_finished(tmp_path, monkeypatch):
    """The encoder's weights come last, after the projector's: a run that died between them is finished from its
    last checkpoint."""

    partial = tmp_path / "end_to_end" / "unfinished"
    (partial / "projector").mkdir(parents=True)
    (partial / "projector" / "model.safetensors").touch()
    for name in ("adapter_model.safetensors", "adapter_config.json", "trainer_state.json"):
        (partial / name).touch()
    order = []
    monkeypatch.setattr(Path, "replace", lambda path, target: order.append(path.name) or path.rename(target))
    put_in_place(partial, tmp_path / "end_to_end")
    assert order[-2:] == ["projector", "adapter_model.safetensors"] and len(order) == 4
    assert has_encoder(tmp_path / "end_to_end")
    (tmp_path / "end_to_end" / "adapter_model.safetensors").unlink()
    assert not has_encoder(tmp_path / "end_to_end")


def test_the_plan_tells_both_learning_rates(recipe, tmp_path, capsys):
    recipe.dry_run = True
    run.run(recipe, config(tmp_path / "out"))
    plan = capsys.readouterr().out
    assert "end_to_end: 4 steps at learning rate 0.001, the projector at 0.003" in plan
    assert "projector" in plan and "encoder.vision_model" in plan and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {},
            {"objective": "contrastive"},
            "end_to_end trains the projector, and the objective contrastive gives it",
        ),
        ({"stage1_objective": "dcr"}, {}, "--stage1_objective is for stage 1, which --stage end_to_end leaves out"),
        ({"stage": "all"}, {"projector_learning_rate": 1e-3}, "--projector_learning_rate is for --stage end_to_end"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, tmp_path, changes, options, message):
    for name, value in changes.items():
        setattr(recipe, name, value)
    with pytest.raises(ValueError, match=message):
        args = config(tmp_path, **options)
        check_objectives(recipe, args, plan_stages(recipe, args))
