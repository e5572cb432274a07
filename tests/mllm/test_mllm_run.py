"""The command: replies are stored and resumed from, the same numbers under two processes, the report."""

import json
import os
import re
import shutil
import signal
import time

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dcr_hf.errors import UserError
from dcr_hf.evaluation.cli import main as evaluate_encoders
from dcr_hf.evaluation.scoring.results import read_results, read_rows
from dcr_hf.mllm.benchmarks import BENCHMARKS, read_benchmarks
from dcr_hf.mllm.cli import main
from dcr_hf.mllm.replies import ask, reply_store
from dcr_hf.mllm.run import execute
from helpers.mllm_layouts import (
    Scripted,
    right_answer,
    save_talkative_llava,
    write_cv_bench,
    write_mmvp_questions,
    write_naturalbench,
)
from helpers.programs import ROOT, TORCHRUN, Program, run_program, screenshot


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmvp_questions(root / "MMVP", pairs=6)
    write_naturalbench(root / "NaturalBench", count=6)
    write_cv_bench(root / "CV-Bench")
    return root


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_talkative_llava(tmp_path_factory.mktemp("llava") / "llava-tiny")


@pytest.fixture(scope="module")
def models(llava, tmp_path_factory):
    other = save_talkative_llava(tmp_path_factory.mktemp("llava") / "llava-other", seed=1)
    return [f"original={llava}", f"dcr={other}"]


def arguments(data_root, models, output, cache, *more) -> list[str]:
    return [
        *("--models", *models, "--benchmarks", "mmvp", "naturalbench", "cv_bench"),
        *("--data_root", str(data_root), "--output_dir", str(output), "--cache_dir", str(cache)),
        *("--workers", "0", "--max_new_tokens", "6", *more),
    ]


@pytest.fixture(scope="module")
def report(data_root, models, tmp_path_factory):
    """One run by one process, batch 8."""
    folder = tmp_path_factory.mktemp("run")
    main(arguments(data_root, models, folder / "report", folder / "cache"))
    return folder / "report"


@pytest.fixture(scope="module")
def scripted(data_root, tmp_path_factory):
    """A report on a model that errs and rambles, and one that is always right."""

    def err(question):
        number = sum(map(ord, question.item))
        return ["A", "Yes", right_answer(question), "I <b>cannot</b> tell | at all.\n"][number % 4]

    folder = tmp_path_factory.mktemp("scripted")
    data = read_benchmarks(list(BENCHMARKS), data_root)
    both = [Scripted("original", err), Scripted("dcr", right_answer)]
    execute(both, data, folder / "report", folder / "cache", batch_size=4)
    return folder / "report"


def scores(folder) -> dict:
    rows = read_results(folder).results
    return {
        (row["encoder"], row["benchmark"], row["dataset"], row["metric"]): (row["value"], row["low"], row["high"])
        for row in rows
    }


def replies(folder) -> dict:
    return {
        (row["encoder"], row["benchmark"]): [each["reply"] for each in read_rows(row["path"])]
        for row in read_results(folder).predictions
    }


def test_a_run_of_the_command(report, models, capsys):
    content = json.loads((report / "results.json").read_text())
    assert content["encoders"]["dcr"]["path"] == models[1].partition("=")[2]
    assert content["encoders"]["dcr"]["dtype"] == "float32" and content["encoders"]["dcr"]["max_new_tokens"] == 6
    assert content["data"]["CV-Bench"]["questions"] == 10 and content["data"]["NaturalBench"]["images"] == 12
    assert {name: len(each) for name, each in replies(report).items()} == {
        (model, benchmark): count
        for model in ("original", "dcr")
        for benchmark, count in (("mmvp", 12), ("naturalbench", 24), ("cv_bench", 10))
    }
    assert len(set(replies(report)["dcr", "naturalbench"])) > 4


def test_an_interrupted_run_resumes(report, data_root, models, tmp_path):
    """Killed after a few replies; a line that was cut off is asked again, no other is."""
    command = arguments(data_root, models, tmp_path / "report", tmp_path / "cache", "--batch_size", "1")
    running = Program(ROOT / "recipes" / "evaluate_mllm.py", *command)
    kept = tmp_path / "cache" / "replies"
    while running.poll() is None and sum(path.read_text().count("\n") for path in kept.rglob("*.jsonl")) < 5:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().returncode == -signal.SIGKILL and not any((tmp_path / "report").iterdir())
    done = sum(path.read_text().count("\n") for path in kept.rglob("*.jsonl"))
    assert 5 <= done < 92
    first = min(kept.rglob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:3]) + lines[3][:-4])
    main(command)
    assert scores(tmp_path / "report") == scores(report) and replies(tmp_path / "report") == replies(report)
    assert sum(path.read_text().count("\n") for path in kept.rglob("*.jsonl") if path != first) == 92 - 3


def test_a_second_run_asks_nothing_and_another_batch_size_asks_nothing(report, data_root, models, monkeypatch):
    asked = "dcr_hf.mllm.model.LlavaForConditionalGeneration.generate"
    monkeypatch.setattr(asked, lambda *_, **__: pytest.fail("asked"))
    cache = report.parent / "cache"
    main(arguments(data_root, models, report.parent / "again", cache, "--batch_size", "3"))
    assert scores(report.parent / "again") == scores(report)
    with pytest.raises(pytest.fail.Exception, match="asked"):
        main(arguments(data_root, models, report.parent / "longer", cache, "--max_new_tokens", "7"))


def test_replies_are_another_entry_when_model_prompts_or_data_are_others(data_root, tmp_path):
    def folder(model, root=data_root, name="mmvp"):
        return reply_store(model, read_benchmarks([name], root)[name], tmp_path).folder

    model = Scripted("a", right_answer)
    same = folder(model)
    assert folder(Scripted("a", right_answer)) == same
    assert folder(Scripted("b", right_answer)) != same
    assert folder(model, name="cv_bench") != same
    moved = Scripted("a", right_answer)
    moved.identity["path"] = "elsewhere"
    assert folder(moved) == same
    copy = shutil.copytree(data_root / "MMVP", tmp_path / "data" / "MMVP")
    (copy / "MMVP Images" / "2.jpg").write_bytes((copy / "MMVP Images" / "1.jpg").read_bytes())
    assert folder(model, tmp_path / "data") != same


def test_another_prompt_is_another_entry(data_root, tmp_path, monkeypatch):
    model = Scripted("a", right_answer)
    before = reply_store(model, read_benchmarks(["mmvp"], data_root)["mmvp"], tmp_path).folder
    monkeypatch.setattr("dcr_hf.mllm.mmvp.LETTER", "Say a or b.")
    assert reply_store(model, read_benchmarks(["mmvp"], data_root)["mmvp"], tmp_path).folder != before


def test_lost_replies_are_reported(data_root, tmp_path):
    """As where every machine has a cache of its own."""

    class Silent(Scripted):
        def answer(self, data, chosen):
            yield from list(super().answer(data, chosen))[:1]

    with pytest.raises(UserError, match=r"MMVP: 8 replies of a are not in .*--cache_dir must be one folder"):
        ask(Silent("a", right_answer), read_benchmarks(["mmvp"], data_root)["mmvp"], tmp_path)


def test_two_processes_give_the_same_numbers(report, data_root, models, tmp_path):
    command = [*TORCHRUN, ROOT / "recipes" / "evaluate_mllm.py"]
    done = run_program(*command, *arguments(data_root, models, tmp_path / "two", tmp_path / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert scores(tmp_path / "two") == scores(report) and replies(tmp_path / "two") == replies(report)
    assert read_results(tmp_path / "two").runs[0]["processes"] == 2
    lines = [len(path.read_text().splitlines()) for path in (tmp_path / "cache").rglob("*.jsonl")]
    assert sorted(lines) == sorted(2 * [6, 6, 12, 12, 5, 5])  # each process a half of each


def test_scripted_models_get_what_they_said(scripted):
    found = {place: value for place, (value, _, _) in scores(scripted).items() if place[0] == "dcr"}
    assert set(found.values()) == {1.0} and len(found) == 4 + 4 + 12
    rows = {(row["benchmark"], row["dataset"], row["metric"]): row for row in read_results(scripted).comparisons}
    assert rows["naturalbench", "all", "g_acc"]["test"] == rows["cv_bench", "COCO", "accuracy"]["test"] == "mcnemar"
    assert rows["mmvp", "official", "pair_accuracy"]["test"] == "mcnemar"
    assert rows["naturalbench", "all", "q_acc"]["test"] == rows["cv_bench", "2D", "accuracy"]["test"] == "bootstrap"
    gained = [row["correct"] for row in read_rows(scripted / "predictions" / "original-cv_bench.jsonl")]
    micro = rows["cv_bench", "all", "micro_accuracy"]
    assert (micro["gained"], micro["lost"]) == (gained.count(False), 0)


def test_replies_that_name_no_option_are_counted_and_listed(scripted):
    listed = read_rows(scripted / "unparsed.jsonl")
    results = read_results(scripted)
    assert listed and {row["model"] for row in listed} == {"original"}
    counts = {(row["encoder"], row["benchmark"]): row["unparsed"] for row in results.predictions}
    for benchmark in BENCHMARKS:
        mine = [row for row in listed if row["benchmark"] == benchmark]
        assert len(mine) == counts["original", benchmark] > 0 and counts["dcr", benchmark] == 0
        assert all(row["prediction"] is None and not row["correct"] for row in mine)
    text = (scripted / "results.md").read_text()
    assert "## Replies that name no option" in text
    assert re.search(r"\| original \| mmvp \| \d+ \| Is thing .* \| I <b>cannot</b> tell \\\| at all\. \|", text)
    assert re.search(rf"\| original \|.* \| {counts['original', 'mmvp']}/12 \|", text)
    assert "I &lt;b&gt;cannot&lt;/b&gt; tell | at all." in (scripted / "report.html").read_text()


def test_the_papers_numbers_are_marked(scripted):
    text = (scripted / "results.md").read_text()
    theirs = [line for line in text.splitlines() if "LLaVA-1.5 7B" in line]
    assert len(theirs) == 5 + 4 + 5 and all("(paper)*" in line for line in theirs)  # un2CLIP has no NaturalBench
    assert sum("31.3" in line for line in theirs) == 3 and any("25.3" in line for line in theirs)
    assert not any("(paper)" in line for line in text.splitlines() if line.startswith(("| original", "| dcr")))


def test_report_is_one_file_with_a_radar_and_what_changed(scripted):
    page = (scripted / "report.html").read_text()
    references = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert len(references) > 10 and all(reference.startswith("data:") for reference in references)
    assert "<script" not in page and "Radar plot: each model on each benchmark" in page
    sizes = {"MMVP": ("mmvp", 2), "NaturalBench": ("naturalbench", 4), "CV-Bench": ("cv_bench", 1)}
    groups = {
        title: sum(not all(row["correct"] for row in group) for group in in_groups(scripted, *size))
        for title, size in sizes.items()
    }
    for title, count in groups.items():
        section = page.split(f"<h2>{title} items that changed: original → dcr</h2>")[1].split("</section>")[0]
        assert f"From wrong to right: {count}<" in section and "From right to wrong: 0<" in section
        assert section.count('class="pair"') == count > 0
        assert section.count("data:image/jpeg") == count * (1 if title == "CV-Bench" else 2)


def in_groups(folder, benchmark, size):
    rows = read_rows(folder / "predictions" / f"original-{benchmark}.jsonl")
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_results_are_not_taken_for_an_encoders(scripted, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate_encoders(["--compare", str(scripted), "--output_dir", str(tmp_path / "o")])
    assert "benchmark 'mmvp' is none of mmvp_vlm, clustering" in capsys.readouterr().err


def test_a_single_axis_is_no_radar(data_root, tmp_path):
    data = read_benchmarks(["mmvp"], data_root)
    execute([Scripted("a", right_answer)], data, tmp_path / "report", tmp_path / "cache", batch_size=4)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Radar" not in page and "Differences" not in page and "MMVP" in page


def test_unreadable_image_ends_the_run_by_name(llava, tmp_path, capsys):
    folder = write_mmvp_questions(tmp_path / "data" / "MMVP", pairs=2)
    path = folder / "MMVP Images" / "3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    command = ["--models", str(llava), "--benchmarks", "mmvp", "--data_root", str(tmp_path / "data")]
    command += ["--output_dir", str(tmp_path / "o"), "--cache_dir", str(tmp_path / "c"), "--workers", "1"]
    with pytest.raises(SystemExit) as error:
        main(command)
    assert error.value.code == 2
    assert re.search(r": error: MMVP Images/3.jpg: damaged image", capsys.readouterr().err, re.MULTILINE)


def test_weights_that_are_missing_end_the_run_by_name(data_root, llava, tmp_path, capsys):
    folder = shutil.copytree(llava, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "projector" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit) as error:
        main(arguments(data_root, [f"a={folder}"], tmp_path / "o", tmp_path / "c"))
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r": error: model a: .* lacks 4 weights, such as .*multi_modal_projector", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--benchmarks", "mmvp_vlm"], r"unknown benchmark 'mmvp_vlm'; known: mmvp, naturalbench, cv_bench"),
        (["--models", "a=/x", "a=/y"], r"--models: the name 'a' is given twice"),
        (["--models", "a="], r"--models a=: expected NAME=FOLDER_OR_ID"),
        (
            ["--models", "/nowhere"],
            r"model nowhere: LLaVA '/nowhere' is neither a folder here nor a hub id",
        ),
        (["--data_root", "/nowhere"], r"--data_root /nowhere is not a folder"),
        (["--output_dir", __file__], r"test_mllm_run.py cannot be written: File exists"),
        (["--batch_size", "0"], r"0 is not positive"),
        (["--max_new_tokens", "-1"], r"-1 is not positive"),
        (["--workers", "-1"], r"-1 is negative"),
        (["--dtype", "int8"], r"invalid choice: 'int8'"),
        (["--bench_marks", "x"], r"unrecognized arguments: --bench_marks"),
    ],
)
def test_wrong_arguments(data_root, models, tmp_path, capsys, given, message):
    with pytest.raises(SystemExit) as error:
        main([*arguments(data_root, models, tmp_path / "o", tmp_path / "c"), *given])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


def test_recipe_is_short_and_says_how_it_is_run():
    text = (ROOT / "recipes" / "evaluate_mllm.py").read_text()
    assert len(text.splitlines()) <= 30
    assert "--models original=" in text and "accelerate launch" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (apt-get install chromium)")
def test_report_renders_in_chromium_without_a_console_message(scripted, tmp_path):
    picture = tmp_path / "page.png"
    done = screenshot(scripted / "report.html", picture)
    assert "CONSOLE" not in done.stderr
    colors = Image.open(picture).convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colors) > 500  # figures and photographs, not an error page
