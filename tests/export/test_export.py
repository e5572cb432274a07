import dataclasses
import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModel,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from dcr_hf import export_encoder
from dcr_hf.export import ExportError, export_folders, export_run
from dcr_hf.export.run_facts import RunFacts
from dcr_hf.models.encoder import ImageEncoder
from helpers.programs import run_program, run_python

CLASSES = {"clip": (CLIPModel, CLIPVisionModel), "siglip": (SiglipModel, SiglipVisionModel)}
STAGES = [
    {
        "name": f"stage{number}",
        "trains_encoder": number == 2,
        "steps": 10 * number,
        "learning_rate": 10.0 ** -(3 + number),
        "projector_learning_rate": None,
        "objective": objective,
    }
    for number, objective in ((1, "reconstruction"), (2, "dcr"))
]
FACTS = RunFacts(
    stages=STAGES,
    encoder="",
    denoiser="owner/denoiser",
    train_data="owner/cc3m",
    command="accelerate launch recipes/openai_vitl.py --seed 7",
    options={
        "stage": "all",
        "objective": "dcr",
        "stage1_objective": "reconstruction",
        "stage1_max_steps": 10,
        "stage1_learning_rate": 1e-4,
        "stage2_max_steps": 20,
        "stage2_learning_rate": 1e-5,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "seed": 7,
    },
    world_size=8,
    versions={"torch": "2.13.0"},
    commit="abc123",
    log={"loss": 1.25, "step": 20},
)


def trained_adapter(folder, encoder_folder):
    """An adapter as stage 2 would leave it, with weights that change the features."""
    torch.manual_seed(0)
    encoder = ImageEncoder.from_pretrained(str(encoder_folder))
    encoder.add_lora(rank=4, alpha=4, dropout=0.1, bias="lora_only")
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    encoder.model.save_pretrained(folder)
    return encoder.eval()


@pytest.fixture(scope="module", params=["clip", "siglip"])
def exported(request, encoder_folders, tmp_path_factory):
    """(family, base folder, the encoder with its adapter, exported dual, exported vision tower)"""
    base, output = encoder_folders[request.param], tmp_path_factory.mktemp("run")
    encoder = trained_adapter(output / "stage2", base)
    dual, vision = export_encoder(str(base), output / "stage2", output, FACTS)
    return request.param, base, encoder, dual, vision


def test_folders_are_named_after_the_encoder(exported):
    family, _, _, dual, vision = exported
    assert (dual.name, vision.name) == (f"{family}-tiny-dcr", f"{family}-tiny-dcr-vision")
    assert not list(dual.parent.glob(".*unfinished"))


def test_both_load_with_no_missing_and_no_unexpected_key(exported):
    family, *_, dual, vision = exported
    for model_class, folder in zip(CLASSES[family], (dual, vision), strict=True):
        _, report = model_class.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def test_keys_are_those_of_the_original_folder(exported):
    _, base, _, dual, vision = exported
    original = load_file(base / "model.safetensors").keys()
    assert load_file(dual / "model.safetensors").keys() == original
    tower = {key for key in original if key.startswith("vision_model.")}
    assert load_file(vision / "model.safetensors").keys() == tower and len(tower) > 20


def test_features_are_the_adapters_and_only_the_vision_side_moved(exported):
    family, base, encoder, dual, vision = exported
    images = torch.rand(3, 3, 32, 32)
    model, tower = CLASSES[family][0].from_pretrained(dual), CLASSES[family][1].from_pretrained(vision)
    original = CLASSES[family][0].from_pretrained(base)
    pixels = encoder.normalize(images)
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(found, encoder(images), rtol=1e-4, atol=1e-5)
        assert (found - original.get_image_features(pixel_values=pixels).pooler_output).norm() > 0.01 * found.norm()
        torch.testing.assert_close(
            tower(pixels).last_hidden_state, model.vision_model(pixels).last_hidden_state, rtol=0, atol=0
        )
    before, after = load_file(base / "model.safetensors"), load_file(dual / "model.safetensors")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    targets = set(encoder.model.targeted_module_names)
    weights = {f"{module}.weight" for module in targets - {"vision_model.head.attention.out_proj"}}
    assert moved == weights | ({f"{module}.bias" for module in targets} & before.keys())
    assert all(key.startswith(("vision_model.", "visual_projection.")) for key in moved)


def test_processor_and_tokenizer_are_the_bases_files(exported):
    _, base, _, dual, vision = exported
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (dual / name).read_bytes() == (base / name).read_bytes()
    assert (
        AutoTokenizer.from_pretrained(dual)("a cat").input_ids
        == AutoTokenizer.from_pretrained(base)("a cat").input_ids
    )
    assert AutoImageProcessor.from_pretrained(vision).image_mean == AutoImageProcessor.from_pretrained(base).image_mean


def test_the_card_tells_how_it_was_made(exported):
    family, base, _, dual, vision = exported
    card, tower_card = ModelCard.load(dual / "README.md"), ModelCard.load(vision / "README.md")
    assert card.data.library_name == "transformers" and card.data.base_model == base.name
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert tower_card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.datasets == ["owner/cc3m"]
    assert {"dcr", family, "arxiv:2603.04803"} <= set(card.data.tags)
    for text in (FACTS.command, "abc123", "owner/denoiser", "| loss | 1.25 |", "| seed | 7 |", "torch 2.13.0"):
        assert text in card.text
    model_class, tower_class = (c.__name__ for c in CLASSES[family])
    assert f'{model_class}.from_pretrained("{dual.name}")' in card.text
    assert f'{tower_class}.from_pretrained("{vision.name}")' in tower_card.text
    assert "LLaVA" in card.text and "Limits" in card.text
    assert "| stage 1 | 10 steps at 0.0001, objective reconstruction |" in card.text
    assert "| stage 2 | 20 steps at 1e-05, objective dcr |" in card.text


def test_the_card_of_a_baseline_does_not_call_it_dcr(clip_folder, tmp_path):
    trained_adapter(tmp_path / "stage2", clip_folder)
    options = FACTS.options | {"objective": "contrastive", "stage": "2"}
    facts = dataclasses.replace(FACTS, options=options, stages=[STAGES[1] | {"objective": "contrastive"}])
    dual, _ = export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path, facts)
    text = ModelCard.load(dual / "README.md").text
    assert "objective `contrastive`" in text and "not DCR itself" in text
    assert "| stage 2 | 20 steps at 1e-05, objective contrastive |" in text and "| stage 1 |" not in text


def test_the_bases_license_is_kept(clip_folder, tmp_path):
    base = shutil.copytree(clip_folder, tmp_path / "clip-licensed")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    trained_adapter(tmp_path / "stage2", base)
    dual, _ = export_encoder(str(base), tmp_path / "stage2", tmp_path)
    assert ModelCard.load(dual / "README.md").data.license == "mit"


def test_an_earlier_export_is_not_overwritten_unasked(clip_folder, tmp_path):
    trained_adapter(tmp_path / "stage2", clip_folder)
    dual, _ = export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)
    with pytest.raises(FileExistsError, match="exists"):
        export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)
    (dual / "stale").touch()
    export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path, overwrite=True)
    assert not (dual / "stale").exists()


def test_weights_that_are_not_finite_are_not_exported(clip_folder, tmp_path):
    trained_adapter(tmp_path / "stage2", clip_folder)
    file = tmp_path / "stage2" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ExportError):
        export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)
    assert not any(folder.exists() for folder in export_folders(str(clip_folder), tmp_path))


def test_a_change_outside_the_vision_side_is_not_exported(clip_folder, tmp_path, monkeypatch):
    from dcr_hf.export import merge as export

    trained_adapter(tmp_path / "stage2", clip_folder)
    load = export.load_dual_encoder

    def careless(encoder, trained=None):
        model = load(encoder, trained)
        if trained is not None:
            model.text_projection.weight.data[0, 0] += 1e-3
        return model

    monkeypatch.setattr(export, "load_dual_encoder", careless)
    with pytest.raises(ExportError, match=r"text_projection\.weight lies outside the vision side"):
        export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)


def test_an_export_that_dies_leaves_nothing_that_looks_whole(clip_folder, tmp_path, monkeypatch):
    from dcr_hf.export import merge as export

    trained_adapter(tmp_path / "stage2", clip_folder)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_card", die)
    with pytest.raises(KeyboardInterrupt):
        export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)
    assert not any(folder.exists() for folder in export_folders(str(clip_folder), tmp_path))
    monkeypatch.undo()
    dual, _ = export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)
    assert dual.exists() and not list(tmp_path.glob(".*unfinished"))


def test_a_tower_without_the_prefix_is_not_exported(clip_folder, tmp_path, monkeypatch):
    from dcr_hf.export import merge as export

    trained_adapter(tmp_path / "stage2", clip_folder)

    def unprefixed(dual, vision, family):
        vision.mkdir()
        tensors = load_file(dual / "model.safetensors")
        save_file({k.removeprefix("vision_model."): v for k, v in tensors.items()}, vision / "model.safetensors")

    monkeypatch.setattr(export, "_save_tower", unprefixed)
    with pytest.raises(ExportError, match="keys are not those"):
        export_encoder(str(clip_folder), tmp_path / "stage2", tmp_path)


def a_run(folder, encoder):
    """A run's folder whose stage 2 has only come to its first checkpoint."""
    RunFacts(**{**FACTS.__dict__, "encoder": str(encoder)}).write(folder)
    checkpoint = folder / "stage2" / "checkpoint-5"
    trained_adapter(checkpoint, encoder)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 3.5, "step": 5}]}))


def test_exporting_later_from_the_command_line(clip_folder, tmp_path):
    a_run(tmp_path, clip_folder)
    command = ["-m", "dcr_hf.export", tmp_path]
    refused = run_python(*command)
    assert refused.returncode == 2 and refused.stderr.startswith("python -m dcr_hf.export: error: ")
    assert "--checkpoint: checkpoint-5" in refused.stderr
    assert "Traceback" not in refused.stderr and "Warning" not in refused.stderr
    done = run_program(*command, "--checkpoint", "checkpoint-5")
    assert done.returncode == 0, done.stderr
    exported = tmp_path / "checkpoint-5" / "clip-tiny-dcr"
    assert done.stdout.split()[-2:] == [str(exported), f"{exported}-vision"]
    assert "| loss | 3.5 |" in ModelCard.load(exported / "README.md").text
    assert not (tmp_path / "clip-tiny-dcr").exists()  # the run would count as finished, and its result be left out


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        export_run(tmp_path)


def test_a_run_of_an_older_version_still_says_which_stage_trained_the_encoder():
    for stage, folder in (("all", "stage2"), ("end_to_end", "end_to_end")):
        facts = dataclasses.replace(FACTS, options=FACTS.options | {"stage": stage}, stages=[])
        assert facts.encoder_stage == folder
