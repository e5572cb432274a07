import dataclasses
import json
import runpy
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, SiglipVisionModel

from dcr_hf import DCRConfig, Recipe, run
from dcr_hf.cli import parse
from dcr_hf.export.run_facts import RunFacts
from dcr_hf.models.projector import Projector
from helpers.evaluation_layouts import write_mmvp
from helpers.images import write_shard
from helpers.programs import ACCELERATE, ROOT, run_program, run_python
from helpers.tiny_models import save_clip

RECIPES = {
    "openai_vitl": "openai/clip-vit-large-patch14",
    "openai_vitl_336": "openai/clip-vit-large-patch14-336",
    "metaclip_vitl": "facebook/metaclip-l14-fullcc2.5b",
    "metaclip_vith": "facebook/metaclip-h14-fullcc2.5b",
    "siglip_so": "google/siglip-so400m-patch14-224",
    "siglip_so_384": "google/siglip-so400m-patch14-384",
}
RECIPE = Recipe(encoder="owner/clip")


def is_training_recipe(path):
    return "RECIPE = Recipe(" in path.read_text()


def test_there_are_six_recipes_of_the_papers_checkpoints():
    found = {path.stem for path in (ROOT / "recipes").glob("*.py") if is_training_recipe(path)}
    assert RECIPES.keys() <= found and len(RECIPES) == 6
    for name, encoder in RECIPES.items():
        text = (ROOT / "recipes" / f"{name}.py").read_text()
        assert f'encoder="{encoder}"' in text and f"accelerate launch recipes/{name}.py" in text
        assert len(text.splitlines()) < 45


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_tells_the_papers_run(name):
    """The numbers that it shows are the defaults, so that options left out mean the same."""
    recipe = runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))
    assert recipe["RECIPE"] == Recipe(encoder=RECIPES[name])
    defaults = {field.name: field.default for field in dataclasses.fields(DCRConfig)}
    assert len(recipe["TRAINING"]) >= 8
    assert recipe["TRAINING"] == {option: defaults[option] for option in recipe["TRAINING"]}


def launch(recipe, *options):
    """As the README says, from the launcher's start."""
    config = ROOT / "accelerate_configs" / "cpu.yaml"
    return run_python(*ACCELERATE, "--config_file", config, ROOT / "recipes" / f"{recipe}.py", *options)


def run_recipe(recipe, *options):
    return run_program(ROOT / "recipes" / f"{recipe}.py", *options)


@pytest.fixture
def options(encoder_folders, sd_folder, shards_folder, tmp_path):
    return {
        "--encoder": encoder_folders["clip"],
        "--denoiser": sd_folder,
        "--train_data": shards_folder,
        "--output_dir": tmp_path / "out",
        "--stage1_max_steps": 2,
        "--stage2_max_steps": 2,
        "--per_device_train_batch_size": 4,
        "--logging_steps": 1,
        "--dataloader_num_workers": 0,
        "--max_bad_fraction": 0.2,
    }


def words(options):
    return [str(word) for pair in options.items() for word in pair]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_trains_both_stages_and_exports(recipe, options, encoder_folders, sd_v_folder):
    family = "siglip" if "siglip" in recipe else "clip"
    options |= {"--encoder": encoder_folders[family]}
    start = run_recipe
    if recipe == "siglip_so_384":
        options |= {"--denoiser": sd_v_folder, "--dataloader_num_workers": 2}
        start = launch
    done = start(recipe, *words(options))
    assert done.returncode == 0, done.stderr
    output = options["--output_dir"]
    for stage in ("stage1", "stage2"):
        history = json.loads((output / stage / "trainer_state.json").read_text())["log_history"]
        assert [line["step"] for line in history if "loss" in line] == [1, 2]
        assert list((output / stage).rglob("events.out.tfevents*"))
        assert (output / stage / "checkpoint-2").is_dir()
    tower_class = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}[family]
    _, report = tower_class.from_pretrained(output / f"{family}-tiny-dcr-vision", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    before = load_file(encoder_folders[family] / "model.safetensors")
    after = load_file(output / f"{family}-tiny-dcr" / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved and all(key.startswith(("vision_model.", "visual_projection.")) for key in moved)
    assert f"recipes/{recipe}.py" in json.loads((output / "run.json").read_text())["command"]


@pytest.fixture
def run_here(monkeypatch, capsys):
    """A recipe's command line in this process: (exit code, standard error)."""

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["openai_vitl.py", *argv])
        try:
            run.main(RECIPE)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err

    return call


def test_the_stages_can_be_run_one_after_the_other(options, run_here):
    output = options["--output_dir"]
    code, error = run_here(*words(options), "--stage", "2")
    assert code == 2 and "stage 2 needs stage 1's projector" in error
    assert run_here(*words(options), "--stage", "1")[0] == 0
    assert not (output / "clip-tiny-dcr").exists()
    code, error = run_here(*words(options), "--stage", "1")
    assert code == 2 and "holds a finished run" in error

    elsewhere = options | {"--output_dir": output.parent / "elsewhere", "--projector": output / "stage1"}
    assert run_here(*words(elsewhere), "--stage", "2")[0] == 0
    assert (output.parent / "elsewhere" / "clip-tiny-dcr").is_dir()
    assert not (output.parent / "elsewhere" / "stage1").exists()

    assert run_here(*words(options), "--stage", "2")[0] == 0
    assert (output / "clip-tiny-dcr").is_dir()
    code, error = run_here(*words(options))
    assert code == 2 and "--overwrite_output_dir" in error
    stale = output / "stage1" / "stale"
    stale.touch()
    assert run_here(*words(options), "--overwrite_output_dir")[0] == 0
    assert not stale.exists() and (output / "clip-tiny-dcr").is_dir()


def test_a_contrast_alone_needs_no_stage_1(options, run_here):
    code, error = run_here(*words(options), "--objective", "contrastive", "--stage", "2", "--keep_weight", "0.5")
    assert code == 0, error
    output = options["--output_dir"]
    assert (output / "clip-tiny-dcr").is_dir() and not (output / "stage1").exists()
    history = json.loads((output / "stage2" / "trainer_state.json").read_text())["log_history"]
    assert all({"loss/contrastive", "keep_distance"} <= line.keys() for line in history if "loss" in line)


def test_stage_1_can_have_an_objective_of_its_own(options, run_here):
    code, error = run_here(*words(options), "--stage1_objective", "reconstruction", "--contrast_space", "residual")
    assert code == 0, error
    for stage, other in (("stage1", "loss/reconstruction"), ("stage2", "cosine/hardest_negative")):
        history = json.loads((options["--output_dir"] / stage / "trainer_state.json").read_text())["log_history"]
        assert all(other in line for line in history if "loss" in line)
    # A checkpoint of stage 1 would have been refused with another objective there.
    facts = json.loads((options["--output_dir"] / "stage1" / "checkpoint-2" / "complete.json").read_text())
    assert (facts["objective"], facts["contrast_space"]) == ("reconstruction", "residual")


def test_the_gradient_conflict_is_written_whole_after_an_interruption(options, run_here):
    options |= {"--stage2_max_steps": 4, "--save_steps": 2, "--log_gradient_conflict_every": 1}
    command = (*words(options), "--objective", "joint", "--stage1_objective", "reconstruction")
    assert run_here(*command)[0] == 0
    output = options["--output_dir"]
    assert not (output / "stage1" / "gradient_conflict.json").exists()
    expected = json.loads((output / "stage2" / "gradient_conflict.json").read_text())
    assert expected["steps"] == [1, 2, 3, 4] and expected["losses"] == ["contrastive", "reconstruction"]
    # As if it had been killed after the first checkpoint.
    for path in [*(output / "stage2").iterdir(), *output.glob("clip-tiny-dcr*")]:
        if path.name not in ("checkpoint-2", "runs"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_here(*command)[0] == 0
    assert json.loads((output / "stage2" / "gradient_conflict.json").read_text()) == expected
    assert (output / "stage2" / "gradient_conflict.png").is_file()


def test_dry_run_says_what_would_run_and_leaves_nothing(options):
    done = run_recipe("openai_vitl", *words(options), "--dry_run")
    assert done.returncode == 0, done.stderr
    plan = done.stdout
    # Projector: LayerNorm 2 x 16, Linear 16 x 32 + 32, Linear 32 x 32 + 32.
    assert "stage1: 2 steps at learning rate 0.0001" in plan and "1,632" in plan
    # LoRA of rank 16: per layer 4 x (24 + 24) + 2 x (24 + 48), two layers; biases 5 x 24 + 48; the projection 24 + 16.
    assert f"{16 * 2 * (4 * 48 + 2 * 72) + 2 * (5 * 24 + 48):,}" in plan and f"{16 * 40:,}" in plan
    assert "UNet evaluations      40 a step" in plan  # 2 x (4 x 4 + 4)
    assert "about 6" in plan  # 48 images, 8 a step
    assert not options["--output_dir"].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--encoder": "sd"}, "has no config.json"),
        ({"--encoder": "no_such_folder"}, "neither a folder here nor a hub id"),
        ({"--denoiser": "clip"}, "lacks unet, vae, scheduler, tokenizer, text_encoder"),
        ({"--train_data": "no_such/*.tar"}, "matches no file"),
        ({"--per_device_train_batch_size": 1}, "needs at least 2"),
        ({"--per_device_train_batch_size": 49}, "about 48 images, fewer than one batch of 49"),
        ({"--stage": 3}, "invalid choice: '3'"),
        ({"--temprature": 0.2}, "unknown option 'temprature'. Did you mean temperature?"),
        ({"--objective": "drc"}, "invalid choice: 'drc' (choose from 'dcr'"),
        ({"--temperature": 0}, "--temperature is 0.0"),
        ({"--temperature": "warm"}, "invalid float value: 'warm'"),
        ({"--max_bad_fraction": 1.5}, "--max_bad_fraction is 1.5"),
        ({"--remove_unused_columns": True}, "--dataloader_drop_last must stay true"),
        ({"--config": "no_such.yaml"}, "no_such.yaml"),
        ({"--projector": "stage1"}, "--projector is for --stage 2"),
        ({"--pair_chunk_size": -1}, "--pair_chunk_size is -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_ends_in_one_line(options, clip_folder, sd_folder, changes, message, run_here, monkeypatch):
    """And before any model is loaded."""
    changes = {name: {"sd": sd_folder, "clip": clip_folder}.get(value, value) for name, value in changes.items()}
    monkeypatch.setattr(run.ImageEncoder, "from_pretrained", lambda *args: pytest.fail("loaded a model first"))
    code, error = run_here(*words(options | changes))
    assert code == 2
    error = error.strip().splitlines()[-1]
    assert error.startswith("openai_vitl.py: error: ") and message in error
    assert not options["--output_dir"].exists()


def test_a_projector_of_other_widths_is_refused_by_both_widths(options, tmp_path, run_here):
    Projector(16, 48).save_pretrained(tmp_path / "projector")
    code, error = run_here(*words(options | {"--stage": 2, "--projector": tmp_path}))
    assert code == 2
    assert "width 16 to conditions of width 48" in error and "have width 16 and this denoiser's conditions 32" in error


def test_options_come_from_the_command_line_then_the_file_then_the_recipe(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("temperature: 0.2\nseed: 5\nstage2_max_steps: 7\nview_flips: true\nreport_to: [none]\n")
    recipe, args = parse(
        Recipe(encoder="a/clip", stage2_max_steps=3, stage1_max_steps=4),
        {"temperature": 0.3, "per_device_train_batch_size": 8},
        ["--config", str(file), "--seed", "6", "--output_dir", str(tmp_path), "--use_cpu"],
    )
    assert (args.seed, args.temperature, args.per_device_train_batch_size) == (6, 0.2, 8)
    assert (recipe.stage2_max_steps, recipe.stage1_max_steps, recipe.encoder) == (7, 4, "a/clip")
    assert args.view_flips and args.report_to == []
    file.write_text("sead: 5\n")
    with pytest.raises(ValueError, match=rf"{file} has an unknown option 'sead'. Did you mean .*seed"):
        parse(RECIPE, {}, [f"--config={file}"])
    file.write_text("- seed\n")
    with pytest.raises(ValueError, match="must hold 'name: value' lines, found list"):
        parse(RECIPE, {}, [f"--config={file}"])
    with pytest.raises(ValueError, match="the recipe has an unknown option 'learning_rat'"):
        parse(RECIPE, {"learning_rat": 1}, [])
    with pytest.raises(ValueError, match="belong to no option: extra"):
        parse(RECIPE, {}, ["extra"])


def test_the_defaults_are_the_papers():
    recipe, args = parse(RECIPE, {}, ["--use_cpu"])
    assert (recipe.stage1_max_steps, recipe.stage1_learning_rate) == (100_000, 1e-4)
    assert (recipe.stage2_max_steps, recipe.stage2_learning_rate) == (4_600, 1e-5)
    assert recipe.denoiser == "Manojb/stable-diffusion-2-1-base" and recipe.train_data == "pixparse/cc3m-wds"
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (16, 2)
    assert (args.weight_decay, args.max_grad_norm, args.warmup_steps) == (0.01, 1.0, 0)
    assert (args.lr_scheduler_type, args.optim) == ("constant", "adamw_torch")
    assert (args.lora_rank, args.lora_alpha, args.lora_dropout, args.temperature) == (16, 16, 0.1, 0.1)
    assert (args.lora_bias, args.decay_all, args.mask_prompt_padding) == ("lora_only", False, False)
    assert (args.noise_target, args.view_flips, args.view_space, args.objective) == ("auto", False, "pixels", "dcr")
    assert args.report_to == ["tensorboard"]


def test_the_released_codes_choices_run(options, run_here):
    changes = {"--noise_target": "velocity", "--view_space": "normalized", "--stage": 1}
    assert run_here(*words(options | changes), "--view_flips")[0] == 0


def test_a_token_does_not_reach_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--hub_token", "hf_secret", "--seed", "1"])
    facts = RunFacts.of_this_run("e", "d", "t", {}, 1, [])
    assert facts.command == "accelerate launch recipe.py --hub_token '***' --seed 1"


def test_non_finite_training_says_so_and_exports_nothing(options, clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip-broken")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"].fill_(float("inf"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = run_recipe("openai_vitl", *words(options | {"--encoder": folder}))
    assert done.returncode == 2 and "not finite at step 1" in done.stderr and "Traceback" not in done.stderr
    assert not (options["--output_dir"] / "stage1" / "projector").exists()


def test_data_that_is_too_bad_ends_with_examples(options, tmp_path):
    samples = {f"00000{i:04d}": b"<html></html>" for i in range(30)}
    write_shard(tmp_path / "bad" / "00000.tar", samples)
    done = run_recipe("openai_vitl", *words(options | {"--train_data": tmp_path / "bad"}))
    assert done.returncode == 2 and "30 not an image (000000" in done.stderr and "Traceback" not in done.stderr


def test_an_encoder_of_another_size(options, tmp_path, run_here):
    folder = save_clip(tmp_path / "clip-48", image_size=48)
    assert run_here(*words(options | {"--encoder": folder}))[0] == 0
    assert (options["--output_dir"] / "clip-48-dcr").is_dir()


def test_benchmarks_run_on_the_way_and_the_best_step_is_exported(options, run_here, tmp_path):
    write_mmvp(tmp_path / "data" / "MMVP_VLM", pairs=9)
    output = options["--output_dir"]
    options |= {"--eval_steps": 1, "--save_steps": 1, "--stage2_max_steps": 3, "--metric_for_best_model": "mmvp_vlm"}
    options |= {"--eval_data_root": tmp_path / "data", "--stage2_learning_rate": 0.1}
    code, error = run_here(*words(options), "--eval_benchmarks", "mmvp_vlm", "--load_best_model_at_end")
    assert code == 0, error
    history = json.loads((output / "stage2" / "trainer_state.json").read_text())["log_history"]
    scores = {line["step"]: line["eval_mmvp_vlm"] for line in history if "eval_mmvp_vlm" in line}
    assert sorted(scores) == [1, 2, 3] and all(0 <= score <= 1 for score in scores.values())
    assert "eval_mmvp_vlm" not in (output / "stage1" / "trainer_state.json").read_text()
    best = max(scores, key=lambda step: (scores[step], -step))
    kept = load_file(output / "stage2" / f"checkpoint-{best}" / "adapter_model.safetensors")
    result = load_file(output / "stage2" / "adapter_model.safetensors")
    assert all(torch.equal(result[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("benchmark", "message"), [("mmvp_vml", "mmvp_vml"), ("clustering:dtd", "dtd"), ("clustering:nothing", "nothing")]
)
def test_a_wrong_benchmark_ends_before_training(options, run_here, tmp_path, benchmark, message):
    code, error = run_here(*words(options | {"--eval_data_root": tmp_path}), "--eval_benchmarks", benchmark)
    assert code == 2 and message in error
    assert not options["--output_dir"].exists()
