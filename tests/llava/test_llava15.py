"""recipes/llava15.py: what moves and what does not, the same bits after an interruption, the LLaVA that comes."""

import itertools
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from dcr_hf.llava import run
from dcr_hf.llava.config import LlavaRecipe
from dcr_hf.llava.examples import RandomOrder
from dcr_hf.llava.swap import swap
from dcr_hf.llava.trainer import LlavaTrainer
from dcr_hf.llava.weights import canonical
from dcr_hf.training.checkpoints import complete_checkpoints
from helpers.images import photographs
from helpers.programs import ROOT, TORCHRUN, run_program
from helpers.tiny_llava import turns, write_data

RECIPE = ROOT / "recipes" / "llava15.py"
SMALL = {
    "--align_max_steps": 2,
    "--instruct_max_steps": 2,
    "--align_batch_size": 2,
    "--instruct_batch_size": 2,
    "--instruct_learning_rate": 1e-3,
    "--logging_steps": 1,
    "--save_steps": 1,
    "--dataloader_num_workers": 0,
    "--warmup_steps": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {f"--{name}": path for name, path in write_data(tmp_path_factory.mktemp("talks") / "data").items()}


@pytest.fixture(scope="module")
def from_parts(towers, llama_folder, data):
    """Every option but the run's folder."""
    return SMALL | data | {"--encoder": towers["clip-l-224"], "--language_model": llama_folder}


def words(options):
    return [str(word) for pair in options.items() for word in pair]


@pytest.fixture
def run_here(monkeypatch, capsys):
    def call(options, *more):
        monkeypatch.setattr(sys, "argv", ["llava15.py", "--use_cpu", *words(options), *more])
        try:
            run.main(LlavaRecipe())
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.err, captured.out

    return call


def tensors_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {canonical(name): tensor for file in files for name, tensor in load_file(file).items()}


def moved(before, after):
    """The parts of the model that have other weights now."""
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def uninterrupted(from_parts, tmp_path_factory):
    output = tmp_path_factory.mktemp("llava15") / "out"
    done = run_program(RECIPE, "--use_cpu", *words(from_parts | {"--output_dir": output}))
    assert done.returncode == 0, done.stderr
    assert f"LLaVA: {output / 'llava'}" in done.stdout
    return output


def test_both_stages_from_the_command_line_make_a_llava_that_answers(uninterrupted):
    model, report = LlavaForConditionalGeneration.from_pretrained(uninterrupted / "llava", output_loading_info=True)
    assert not any(report.values()) and model.config.architectures == ["LlavaForConditionalGeneration"]
    processor = AutoProcessor.from_pretrained(uninterrupted / "llava", backend="pil")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert prompt.endswith("questions. USER: <image> \nWhat is this? ASSISTANT:")
    inputs = processor(images=photographs(2), text=[prompt] * 2, return_tensors="pt", padding=True)
    assert model.generate(**inputs, max_new_tokens=2).shape == (2, inputs.input_ids.shape[1] + 2)
    assert processor.image_processor.do_pad
    run_json = json.loads((uninterrupted / "run.json").read_text())
    assert "llava15.py" in run_json["command"] and run_json["options"]["instruct_learning_rate"] == 1e-3


def test_align_moves_the_projector_alone_and_instruct_never_the_tower(uninterrupted, towers):
    start, end = tensors_of(uninterrupted / "start"), tensors_of(uninterrupted / "llava")
    assert moved(start, end) == {"multi_modal_projector", "language_model", "lm_head"}
    for name, tensor in load_file(towers["clip-l-224"] / "model.safetensors").items():
        if name.startswith("vision_model."):
            assert torch.equal(end[f"vision_tower.{name.removeprefix('vision_model.')}"], tensor)
    aligned = tensors_of(uninterrupted / "align" / "trained")
    assert {name.split(".")[0] for name in aligned} == {"multi_modal_projector"}
    assert all(not torch.equal(tensor, start[name]) for name, tensor in aligned.items())
    assert all(not torch.equal(tensor, end[name]) for name, tensor in aligned.items())
    assert {name.split(".")[0] for name in tensors_of(uninterrupted / "instruct" / "trained")} == {
        "multi_modal_projector",
        "language_model",
        "lm_head",
    }


@pytest.fixture
def stop_at(monkeypatch):
    """A signal, once, in the middle of a step."""
    original = LlavaTrainer.compute_loss

    def arm(stage, step):
        sent = []

        def compute_loss(self, *args, **kwargs):
            if self.args.output_dir.endswith(stage) and self.state.global_step == step - 1 and not sent:
                sent.append(step)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(LlavaTrainer, "compute_loss", compute_loss)

    return arm


def longer(options, output):
    """Enough steps to be stopped in."""
    return options | {"--output_dir": output, "--instruct_max_steps": 4, "--align_max_steps": 3}


@pytest.mark.parametrize("more", [(), ("--lora_rank", "4"), ("--gradient_accumulation_steps", "2")])
def test_stopped_in_either_stage_and_run_again_it_ends_with_the_same_bits(
    from_parts, run_here, stop_at, tmp_path, monkeypatch, more
):
    whole = longer(from_parts, tmp_path / "whole")
    assert run_here(whole, *more)[0] == 0
    stopped = longer(from_parts, tmp_path / "stopped")
    for stage, step in (("align", 2), ("instruct", 3)):
        stop_at(stage, step)
        code, error, _ = run_here(stopped, *more)
        assert code == 75 and f"stopped by a signal at step {step}" in error, error
        assert complete_checkpoints(tmp_path / "stopped" / stage)[-1].name == f"checkpoint-{step}"
        assert not (tmp_path / "stopped" / "llava").exists()
        monkeypatch.undo()
    assert run_here(stopped, *more)[0] == 0
    expected, found = tensors_of(tmp_path / "whole" / "llava"), tensors_of(tmp_path / "stopped" / "llava")
    assert moved(expected, found) == set()
    for stage, steps in (("align", 3), ("instruct", 4)):
        state = json.loads((tmp_path / "stopped" / stage / "trained" / "trainer_state.json").read_text())
        assert [line["step"] for line in state["log_history"] if "loss" in line] == list(range(1, steps + 1))


def test_dying_between_the_last_checkpoint_and_the_result(from_parts, run_here, uninterrupted, tmp_path):
    again = shutil.copytree(uninterrupted, tmp_path / "out")
    for folder in (again / "instruct" / "trained", again / "llava"):
        shutil.rmtree(folder)
    code, error, _ = run_here(from_parts | {"--output_dir": again})
    assert code == 0, error
    assert moved(tensors_of(uninterrupted / "llava"), tensors_of(again / "llava")) == set()


def test_going_on_with_other_options_is_refused(from_parts, run_here, uninterrupted, tmp_path):
    again = shutil.copytree(uninterrupted, tmp_path / "out")
    for folder in (again / "instruct" / "trained", again / "llava"):
        shutil.rmtree(folder)
    code, error, _ = run_here(from_parts | {"--output_dir": again, "--instruct_learning_rate": 0.5})
    assert code == 2 and "learning_rate: 0.001 -> 0.5" in error and "--resume_anyway" in error


def test_another_beginning_in_the_same_folder_is_refused(from_parts, run_here, uninterrupted, towers, tmp_path):
    """Also when nothing but the parts' assembly is there yet."""
    again = tmp_path / "out"
    shutil.copytree(uninterrupted / "start", again / "start")
    shutil.copy(uninterrupted / "run.json", again)
    other = from_parts | {"--output_dir": again, "--encoder": towers["siglip-224"]}
    code, error, _ = run_here(other)
    assert code == 2 and f"began with --encoder {towers['clip-l-224']}; this one has {towers['siglip-224']}" in error
    assert run_here(other, "--overwrite_output_dir")[0] == 0
    config = json.loads((again / "llava" / "config.json").read_text())
    assert config["vision_config"]["model_type"] == "siglip_vision_model"


def test_adapters_are_merged_as_peft_would(from_parts, run_here, tmp_path):
    options = from_parts | {"--output_dir": tmp_path / "out", "--instruct_max_steps": 3}
    assert run_here(options, "--lora_rank", "4", "--lora_alpha", "6")[0] == 0
    start, end = tensors_of(tmp_path / "out" / "start"), tensors_of(tmp_path / "out" / "llava")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    language = {name for name in changed if name.startswith("language_model.")}
    assert len(language) == 2 * 7 and all(name.endswith("_proj.weight") for name in language)
    assert {name for name in changed - language} == {n for n in start if n.startswith("multi_modal_projector.")}

    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out" / "start")
    targets = r".*language_model\.layers.*_proj"
    adapted: PeftModel = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    trained = load_file(tmp_path / "out" / "instruct" / "trained" / "model.safetensors")
    loaded = adapted.base_model.model.load_state_dict(trained, strict=False)
    assert not loaded.unexpected_keys
    merged = {canonical(name): tensor for name, tensor in adapted.merge_and_unload().state_dict().items()}
    for name in language:
        torch.testing.assert_close(end[name], merged[name], rtol=1e-5, atol=1e-7)


def test_each_part_has_its_own_learning_rate(from_parts, run_here, tmp_path):
    """AdamW's first step has the length of the learning rate."""
    options = from_parts | {"--output_dir": tmp_path / "out", "--instruct_max_steps": 1, "--align_max_steps": 1}
    options |= {"--align_learning_rate": 3e-3, "--projector_learning_rate": 5e-4, "--lr_scheduler_type": "constant"}
    options |= {"--instruct_batch_size": 8, "--train_sampling_strategy": "random"}  # with images among them
    assert run_here(options, "--max_grad_norm", "0")[0] == 0
    start, aligned = tensors_of(tmp_path / "out" / "start"), tensors_of(tmp_path / "out" / "align" / "trained")
    end = tensors_of(tmp_path / "out" / "llava")
    bias = "multi_modal_projector.linear_2.bias"
    assert (aligned[bias] - start[bias]).abs().max() == pytest.approx(3e-3, rel=0.01)
    assert (end[bias] - aligned[bias]).abs().max() == pytest.approx(5e-4, rel=0.01)
    norm = "language_model.norm.weight"
    assert (end[norm] - start[norm]).abs().max() == pytest.approx(1e-3, rel=0.01)


def test_a_batch_of_text_alone_trains_too_and_gives_the_projector_no_gradient(from_parts, run_here, tmp_path, data):
    talks = [{"id": str(n), "conversations": turns("What is", f"cat {n}")} for n in range(8)]
    (tmp_path / "texts.json").write_text(json.dumps(talks))
    options = from_parts | {"--output_dir": tmp_path / "out", "--instruct_data": tmp_path / "texts.json"}
    code, error, _ = run_here(options)
    assert code == 0, error
    aligned, end = tensors_of(tmp_path / "out" / "align" / "trained"), tensors_of(tmp_path / "out" / "llava")
    assert all(torch.equal(tensor, end[name]) for name, tensor in aligned.items())


def test_skipped_images_are_counted_in_the_log(from_parts, run_here, tmp_path):
    broken = write_data(tmp_path / "data", captions=4)
    (broken["align_images"] / "coco" / "1.jpg").write_bytes(b"<html>")
    options = from_parts | {"--output_dir": tmp_path / "out", "--align_data": broken["align_data"]}
    options |= {"--align_images": broken["align_images"], "--align_max_steps": 4, "--stage": "align"}
    code, error, _ = run_here(options)
    assert code == 0, error
    lines = json.loads((tmp_path / "out" / "align" / "trained" / "trainer_state.json").read_text())["log_history"]
    last = [line for line in lines if "loss" in line][-1]
    assert last["skipped_images"] == last["skipped/not_an_image"] == 2  # once in each of two epochs


def test_align_alone_makes_a_llava_too_and_instruct_goes_on_from_it(from_parts, run_here, uninterrupted, tmp_path):
    options = from_parts | {"--output_dir": tmp_path / "out"}
    assert run_here(options | {"--stage": "align"})[0] == 0
    aligned = tensors_of(tmp_path / "out" / "llava-aligned")
    assert moved(tensors_of(uninterrupted / "start"), aligned) == {"multi_modal_projector"}
    assert run_here(options | {"--stage": "instruct"})[0] == 0
    assert moved(tensors_of(uninterrupted / "llava"), tensors_of(tmp_path / "out" / "llava")) == set()


def test_from_a_llava_with_another_tower(llava_folder, towers, data, run_here, tmp_path):
    swapped = swap(str(llava_folder), str(towers["siglip-224"]), tmp_path / "swapped").folder
    options = SMALL | data | {"--llava": swapped, "--output_dir": tmp_path / "out"}
    code, error, _ = run_here(options)
    assert code == 0, error
    start, end = tensors_of(swapped), tensors_of(tmp_path / "out" / "llava")
    assert moved(start, end) == {"multi_modal_projector", "language_model", "lm_head"}
    assert not (tmp_path / "out" / "start").exists()


def test_the_plan_says_what_would_be_trained_and_writes_nothing(from_parts, run_here, tmp_path):
    options = from_parts | {"--output_dir": tmp_path / "out", "--align_max_steps": -1, "--instruct_max_steps": -1}
    code, error, plan = run_here(options, "--dry_run")
    assert code == 0, error
    assert "align: 6 steps at learning rate 0.001" in plan and "12, 12 of them with an image" in plan
    assert "instruct: 8 steps at learning rate 0.001, the projector at 2e-05" in plan
    assert "256 an image" in plan and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "more", "told"),
    [
        ({"--encoder": None}, (), "give --llava, or both --encoder and --language_model"),
        ({"--llava": "x/y"}, (), "--llava is a complete LLaVA"),
        ({"--align_data": None}, (), "--stage all needs --align_data"),
        ({"--align_data": "nowhere.json"}, (), "'nowhere.json': no such file"),
        ({"--align_images": "/nowhere"}, (), "--align_images '/nowhere' is no folder"),
        ({"--instruct_images": None}, (), "--instruct_images is needed"),
        ({"--stage": "instruct"}, (), "needs a projector that is aligned"),
        ({}, ("--learning_rate", "1"), "--learning_rate 1.0 has no effect here: give --align_learning_rate"),
        ({}, ("--per_device_train_batch_size", "3"), "has no effect here: give --align_batch_size"),
        ({}, ("--max_steps", "3"), "--max_steps 3 has no effect here: give --align_max_steps"),
        ({"--align_batch_size": 0}, (), "--align_batch_size is 0; it is a number of examples"),
        ({"--instruct_max_steps": 0}, (), "--instruct_max_steps is 0; it is a number of steps, or -1"),
        ({}, ("--num_train_epochs", "0"), "--num_train_epochs is 0.0; it must be above 0"),
        ({}, ("--lora_dropout", "3"), "--lora_dropout is 3.0; it must be in [0, 1)"),
        ({}, ("--push_to_hub",), "--push_to_hub True has no effect here: upload the folder llava"),
        ({}, ("--lora_alpha", "3"), "--lora_alpha is for --lora_rank"),
        ({}, ("--lora_rank", "-1"), "--lora_rank is -1"),
        ({}, ("--model_max_length", "100"), "an image alone has 256 tokens"),
        ({}, ("--train_sampling_strategy", "sequential"), "here it is group_by_length or random"),
        ({}, ("--lora_ranks", "1"), "unknown option 'lora_ranks'. Did you mean lora_rank"),
    ],
)
def test_a_wrong_argument_ends_with_one_line_and_nothing_written(from_parts, run_here, tmp_path, changes, more, told):
    options = from_parts | {"--output_dir": tmp_path / "out"} | changes
    code, error, _ = run_here({name: value for name, value in options.items() if value is not None}, *more)
    assert code == 2 and told in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_fsdp_is_refused(from_parts, run_here, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code, error, _ = run_here(from_parts | {"--output_dir": tmp_path / "out"})
    assert code == 2 and "not under FSDP" in error


def test_in_bfloat16_what_is_trained_is_kept_in_float32(from_parts, run_here, tmp_path):
    code, error, _ = run_here(from_parts | {"--output_dir": tmp_path / "out"}, "--bf16", "True")
    assert code == 0, error
    trained, start = tensors_of(tmp_path / "out" / "instruct" / "trained"), tensors_of(tmp_path / "out" / "start")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    norm = "language_model.norm.weight"
    assert 0 < (trained[norm] - start[norm]).abs().max() < 2**-8  # less than bfloat16 could tell from 1


def test_a_finished_run_is_not_written_over_unasked(from_parts, run_here, uninterrupted, tmp_path):
    again = shutil.copytree(uninterrupted, tmp_path / "out")
    options = from_parts | {"--output_dir": again}
    code, error, _ = run_here(options)
    assert code == 2 and "holds a finished run" in error
    (again / "llava" / "stale").touch()
    assert run_here(options, "--overwrite_output_dir")[0] == 0
    assert not (again / "llava" / "stale").exists()


def seed_for_different_modalities(data):
    """With which one of the first two conversations, and one of the next two, has an image and the other none."""
    lengths = [1 if "image" in talk else -1 for talk in json.loads(data["--instruct_data"].read_text())]
    for seed in itertools.count():
        first = [lengths[index] for index in RandomOrder(lengths, 1, 2, seed)]
        if first[0] != first[1] and first[2] != first[3]:
            return seed


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_processes_train_what_one_does_with_twice_the_batch(from_parts, data, strategy, tmp_path):
    """Where in every step one of the two has an image and the other has none."""
    options = from_parts | {"--lr_scheduler_type": "constant", "--save_steps": 100, "--max_grad_norm": 0}
    options |= {"--train_sampling_strategy": "random", "--instruct_batch_size": 1, "--align_batch_size": 1}
    options |= {"--seed": seed_for_different_modalities(data)}
    one = run_program(
        RECIPE, "--use_cpu", *words(options | {"--output_dir": tmp_path / "one", "--gradient_accumulation_steps": 2})
    )
    assert one.returncode == 0, one.stderr
    more = {} if strategy == "ddp" else {"--deepspeed": ROOT / "accelerate_configs" / "deepspeed_zero3.json"}
    options |= more | {"--output_dir": tmp_path / "two"}
    two = run_program(*TORCHRUN, RECIPE, "--use_cpu", *words(options), DS_ACCELERATOR="cpu")
    assert two.returncode == 0, two.stderr
    expected, found = tensors_of(tmp_path / "one" / "llava"), tensors_of(tmp_path / "two" / "llava")
    start = tensors_of(tmp_path / "one" / "start")
    assert moved(start, found) == {"multi_modal_projector", "language_model", "lm_head"}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5)
