"""Runs on a hub: what is fetched, what happens in an outage, which commit counts, and uploads."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from dcr_hf import Recipe
from dcr_hf.errors import Interrupted, UnavailableError, UserError
from dcr_hf.evaluation.benchmarks import read_sets
from dcr_hf.export import __main__ as export_command
from dcr_hf.hub import forget_pins, local_folder, patience, prefer
from dcr_hf.llava.assemble import assemble, read_parts
from dcr_hf.models.results import trained_base
from dcr_hf.run import run
from helpers.evaluation_layouts import write_classification
from helpers.hub import Fault
from helpers.images import encoded, photographs, write_shard
from helpers.programs import TORCHRUN, WORKERS, run_program
from helpers.runs import options_of_a_run
from helpers.tiny_llava import save_llama

ROOT = Path(__file__).parents[2]
ENCODER, DENOISER, DATA = "me/clip", "me/sd", "me/cc3m"
WEIGHTS = r"\.(safetensors|bin)$"


@pytest.fixture
def filled(hub, clip_folder, sd_folder, tmp_path):
    """The hub with an encoder, a denoiser and six shards of eight images."""
    hub.add("models", ENCODER, clip_folder)
    hub.add("models", DENOISER, sd_folder)
    photos = [encoded(image) for image in photographs(48, side=40)]
    for shard in range(6):
        write_shard(tmp_path / f"d/cc3m-train-{shard}.tar", {f"{shard}{i}": photos[8 * shard + i] for i in range(8)})
    hub.add("datasets", DATA, tmp_path / "d")
    return hub


def start(output, workers=0, recipe=None, **options):
    """A run of 4 steps a stage, in this process."""
    forget_pins()
    given = {"encoder": ENCODER, "denoiser": DENOISER, "train_data": DATA}
    recipe = Recipe(**(given | {"stage1_max_steps": 4, "stage2_max_steps": 4} | (recipe or {})))
    run(recipe, options_of_a_run(output, dataloader_num_workers=workers, shuffle_buffer=8, **options))


def weights_of(output):
    files = ("stage1/projector/model.safetensors", "stage2/adapter_model.safetensors", "clip-dcr/model.safetensors")
    return {file: load_file(output / file) for file in files}


def equal(first, second):
    return all(torch.equal(tensor, second[file][name]) for file in first for name, tensor in first[file].items())


def test_a_dry_run_reads_no_weights(filled, tmp_path, capsys):
    start(tmp_path / "out", recipe={"dry_run": True})
    assert filled.requests(r"config\.json") and not filled.requests(WEIGHTS) and not filled.requests(r"\.tar")
    assert "steps an epoch        unknown" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_number_of_images_that_a_data_set_declares_is_used(filled, tmp_path, capsys):
    info = {"splits": {"train": {"filenames": [], "num_samples": 48}}}
    filled.repositories["datasets", DATA]["main"]["_info.json"] = json.dumps(info).encode()
    start(tmp_path / "out", recipe={"dry_run": True})
    assert "steps an epoch        about 12" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cold_start_fetches_each_file_once_and_a_warm_one_none(filled, tmp_path, workers):
    start(tmp_path / "out", workers)
    for path in {entry[1] for entry in filled.requests(rf"GET .*{WEIGHTS}|GET .*json")}:
        assert len(filled.requests(rf"GET {path}$")) == 1, path
    assert len(filled.requests("/api/(models|datasets)")) == 3  # one for each repository, whatever the workers
    assert not filled.requests(r"pytorch_model\.bin")
    filled.log.clear()
    start(tmp_path / "again", workers)
    assert not filled.requests(rf"{WEIGHTS}|json|HEAD") and len(filled.requests("/api/(models|datasets)")) == 3
    assert equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "again"))


def test_an_epoch_fetches_each_shard_once(filled, tmp_path):
    start(tmp_path / "out", recipe={"stage": "1", "stage1_max_steps": 12})
    assert [len(filled.requests(f"train-{shard}.tar")) for shard in range(6)] == [1] * 6


def test_shards_in_the_cache_are_read_there(filled, tmp_path):
    start(tmp_path / "out", recipe={"stage": "1"})
    local_folder(DATA, ["*.tar"], kind="dataset")
    filled.log.clear()
    start(tmp_path / "again", recipe={"stage": "1"})
    assert not filled.requests(r"\.tar")
    first, again = (load_file(tmp_path / name / "stage1/projector/model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_outage_ends_with_a_checkpoint_and_the_next_call_with_the_same_bits(filled, tmp_path, monkeypatch, workers):
    start(tmp_path / "uninterrupted", workers)
    filled.faults = [Fault(r"\.tar", "503", times=10**6, skip=2)]
    monkeypatch.setenv(patience.PATIENCE_VARIABLE, "0.3")
    with pytest.raises(Interrupted, match=r"503 Service Unavailable.*stopped before step \d of 4.*with a checkpoint"):
        start(tmp_path / "out", workers)
    assert list((tmp_path / "out/stage1").glob("checkpoint-*/complete.json"))
    filled.faults = []
    start(tmp_path / "out", workers)
    assert equal(weights_of(tmp_path / "uninterrupted"), weights_of(tmp_path / "out"))


def test_a_short_outage_is_waited_for(filled, tmp_path, caplog, monkeypatch):
    start(tmp_path / "uninterrupted")
    filled.faults = [Fault(r"\.tar", "503", times=3, skip=1), Fault(r"\.tar", "cut", times=2, after=500)]
    monkeypatch.setattr(patience, "QUIET_BETWEEN_LINES", 0)
    start(tmp_path / "out")
    assert "503 Service Unavailable; trying again in" in caplog.text and "(--hub_patience)" in caplog.text
    assert equal(weights_of(tmp_path / "uninterrupted"), weights_of(tmp_path / "out"))


def test_a_hub_that_is_away_at_the_start(filled, tmp_path, monkeypatch):
    monkeypatch.setenv(patience.PATIENCE_VARIABLE, "0.2")
    filled.faults = [Fault("api", "503", times=10**6)]
    with pytest.raises(UnavailableError, match="--encoder 'me/clip'"):
        start(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_keeps_to_the_commits_with_which_it_began(filled, tmp_path, caplog):
    start(tmp_path / "uninterrupted")
    start(tmp_path / "out", recipe={"stage": "1"})
    began = json.loads((tmp_path / "out/run.json").read_text())["revisions"]
    assert set(began) == {"encoder", "denoiser", "train_data"}
    main = filled.repositories["models", ENCODER]
    main["old"] = dict(main["main"])
    main["main"]["README.md"] = b"moved"
    start(tmp_path / "out", recipe={"stage": "2"})
    assert "the hub's main has moved to" in caplog.text
    assert json.loads((tmp_path / "out/run.json").read_text())["revisions"] == began
    assert equal(weights_of(tmp_path / "uninterrupted"), weights_of(tmp_path / "out"))
    assert trained_base(tmp_path / "out/stage2") == f"{ENCODER}@{began['encoder']}"
    assert began["encoder"] in (tmp_path / "out/clip-dcr/README.md").read_text()
    del main["old"]
    with pytest.raises(UserError, match=r"--encoder 'me/clip': this run began with commit .* no longer on the hub"):
        start(tmp_path / "out", recipe={"stage": "2"})


def test_a_local_folder_that_changed_is_noticed(filled, tmp_path):
    data = {"stage": "1", "train_data": str(tmp_path / "d")}
    for steps in (4, 8):
        start(tmp_path / "out", recipe=data | {"stage1_max_steps": steps}, save_strategy="steps", save_steps=2)
        (tmp_path / "out/stage1/projector").rename(tmp_path / f"projector{steps}")
    (tmp_path / "d/cc3m-train-6.tar").write_bytes((tmp_path / "d/cc3m-train-5.tar").read_bytes())
    with pytest.raises(UserError, match=r"train_data_revision: '6 shards, .*' -> '7 shards, "):
        start(tmp_path / "out", recipe=data | {"stage1_max_steps": 12})


def test_an_upload_is_checked_before_training_and_made_after_it(filled, tmp_path, monkeypatch):
    out, push = tmp_path / "out", {"push_to_hub": True, "hub_model_id": "me/better"}
    for options, message in (
        (push, r"--push_to_hub: the hub does not let you write.*[Tt]oken"),
        (push | {"hub_token": "hf_x", "hub_model_id": "you/better"}, "you is neither you .me. nor an organisation"),
        (push | {"hub_token": "hf_x", "hub_model_id": "team/better"}, "does not let you write to team/better"),
        (push | {"hub_token": "hf_x", "hub_model_id": "a b"}, "--hub_model_id a b"),
    ):
        with pytest.raises(UserError, match=message):
            start(out, **options)
    assert not out.exists() and not filled.requests(r"\.tar")
    start(out)  # trained without, uploaded later, by either command
    start(out, **push, hub_token="hf_x")
    monkeypatch.setattr(sys, "argv", ["export", str(out), "--push_to_hub", "--hub_token", "hf_x"])
    export_command.main()
    for name, suffix in (("me/better", ""), ("me/better-vision", "-vision"), ("me/clip-dcr", "")):
        files = filled.repositories["models", name]["main"]
        assert files["model.safetensors"] == (out / f"clip-dcr{suffix}/model.safetensors").read_bytes()
        assert f'from_pretrained("{name}")' in files["README.md"].decode()
    with pytest.raises(UserError, match=r"To upload it: python -m dcr_hf\.export .*out --push_to_hub"):
        start(out)


def start_ranks(filled, output, *more):
    """`start` as a program, in two processes."""
    words = ["--encoder", ENCODER, "--denoiser", DENOISER, "--train_data", DATA, "--stage", "1", "--use_cpu"]
    words += ["--per_device_train_batch_size", "4", "--report_to", "none", "--gradient_accumulation_steps", "1"]
    words += ["--shuffle_buffer", "8", "--output_dir", output, *more]
    program = [WORKERS / "on_a_hub.py", filled.url, output.parent / "home", ROOT / "recipes" / "openai_vitl.py"]
    return run_program(*TORCHRUN, *program, *words, OMP_NUM_THREADS="1")


def projector_of(output):
    return (output / "stage1/projector/model.safetensors").read_bytes()


def test_two_processes_fetch_each_file_once(filled, tmp_path):
    done = start_ranks(filled, tmp_path / "out", "--stage1_max_steps", "2", "--dataloader_num_workers", "2")
    assert done.returncode == 0, done.stderr
    assert len(filled.requests("/api/(models|datasets)")) == 3
    for path in {entry[1] for entry in filled.requests(rf"GET .*{WEIGHTS}|GET .*json")}:
        assert len(filled.requests(rf"GET {path}$")) == 1, path


def test_a_shard_that_only_one_rank_waits_for_in_vain_stops_both_at_the_same_step(filled, tmp_path):
    words = ["--stage1_max_steps", "6", "--dataloader_num_workers", "1"]
    assert start_ranks(filled, tmp_path / "uninterrupted", *words).returncode == 0
    filled.faults = [Fault(r"train-3\.tar", "503", times=10**6)]
    stopped = start_ranks(filled, tmp_path / "out", *words, "--hub_patience", "1")
    assert stopped.returncode != 0 and "exitcode  : 75" in stopped.stderr
    assert "503 Service Unavailable" in stopped.stderr and "Traceback (most recent call last)" not in stopped.stdout
    assert not (tmp_path / "out/stage1/projector").exists()
    filled.faults = []
    assert start_ranks(filled, tmp_path / "out", *words).returncode == 0
    assert projector_of(tmp_path / "uninterrupted") == projector_of(tmp_path / "out")


def test_a_run_without_a_network_on_what_the_cache_holds(filled, tmp_path, monkeypatch):
    start(tmp_path / "out")
    local_folder(DATA, ["*.tar"], kind="dataset")
    filled.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start(tmp_path / "offline")
    assert not filled.log and equal(weights_of(tmp_path / "out"), weights_of(tmp_path / "offline"))


def test_every_recipe_s_defaults_are_found_by_their_ids(
    filled, clip_folder, siglip_folder, sd_folder, tmp_path, capsys
):
    recipes = [path for path in (ROOT / "recipes").glob("*.py") if hasattr(runpy.run_path(str(path)), "get")]
    seen = 0
    for path in sorted(recipes):
        recipe = runpy.run_path(str(path)).get("RECIPE")
        if not isinstance(recipe, Recipe) or Path(recipe.encoder).is_dir():
            continue
        seen += 1
        filled.add("models", recipe.encoder, siglip_folder if "siglip" in recipe.encoder else clip_folder)
        filled.add("models", recipe.denoiser, sd_folder)
        filled.add("datasets", recipe.train_data, {"a-train-0000.tar": b""})
        recipe.dry_run = True
        forget_pins()
        run(recipe, options_of_a_run(tmp_path / "out"))
        assert "stage2: 4,600 steps" in capsys.readouterr().out
    assert seen == 6


def test_evaluation_pins_its_data_and_says_so(filled, tmp_path):
    name, folders = "clip-benchmark/wds_vtab-cifar10", [tmp_path / "a", tmp_path / "b"]
    for folder, labels in zip(folders, ([0, 1], [0, 1, 1]), strict=True):
        write_classification(folder, labels, ["cat", "dog"])
    tagged = filled.add("datasets", name, folders[0], branch="v1")
    main = filled.add("datasets", name, folders[1])
    data = read_sets([("clustering", "cifar10")], None)["clustering", "cifar10"]
    assert (len(data.images), data.revision, data.source) == (3, main, name)
    forget_pins()
    prefer([f"{name}@v1"], "--data_revisions")
    data = read_sets([("clustering", "cifar10")], None)["clustering", "cifar10"]
    assert (len(data.images), data.revision, data.source) == (2, tagged, f"{name}@v1")
    with pytest.raises(UserError, match="--data_revisions x/y: expected owner/name@revision"):
        prefer(["x/y"], "--data_revisions")


def test_a_llava_is_put_together_from_the_hub_and_described_without_weights(filled, tmp_path):
    filled.add("models", "me/vicuna", save_llama(tmp_path / "vicuna"))
    parts = read_parts(ENCODER, "me/vicuna")
    assert filled.requests("vicuna.*json") and not filled.requests("^GET .*/clip/.*safetensors")
    assemble(parts, tmp_path / "llava")
    assert (tmp_path / "llava/model.safetensors.index.json").is_file()
