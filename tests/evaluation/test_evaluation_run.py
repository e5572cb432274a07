"""The command line, from folders to report: the same numbers under any number of processes, cached or not."""

import json
import re
import shutil

import pytest
from PIL import Image
from transformers import CLIPVisionModel

from dcr_hf.evaluation.cli import main
from dcr_hf.evaluation.report.page import Section, write_report
from dcr_hf.evaluation.report.summary import make_tables
from dcr_hf.evaluation.scoring.results import read_results, read_rows
from dcr_hf.plotting import data_uri
from helpers.evaluation_layouts import write_class_folders, write_classification, write_mmvp, write_retrieval
from helpers.images import encoded, photographs
from helpers.programs import ROOT, TORCHRUN, run_program, screenshot
from helpers.tiny_models import save_clip

BENCHMARKS = [
    *("mmvp_vlm", "linear_probe:birds", "clustering:cifar10", "clustering:birds", "zeroshot:cifar10"),
    "retrieval:flickr30k",
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmvp(root / "MMVP_VLM", pairs=18)
    write_classification(root / "cifar10", [index % 6 for index in range(150)], [f"thing {i}" for i in range(6)])
    write_class_folders(root / "birds" / "train", {"blue_tit": 10, "robin": 14})
    write_class_folders(root / "birds" / "test", {"blue_tit": 8, "robin": 7})
    write_retrieval(root / "flickr30k", [[f"photo {index}", f"view {index}"] for index in range(20)])
    return root


@pytest.fixture(scope="module")
def encoders(clip_folder, tmp_path_factory):
    other = save_clip(tmp_path_factory.mktemp("models") / "clip-other", seed=1)
    return [f"original={clip_folder}", f"dcr={other}"]


def arguments(data_root, encoders, output, cache, *more) -> list[str]:
    return [
        *("--encoders", *encoders),
        *("--benchmarks", *BENCHMARKS),
        *("--data_root", str(data_root), "--output_dir", str(output), "--cache_dir", str(cache)),
        *("--seeds", "0", "1", "--workers", "0", *more),
    ]


@pytest.fixture(scope="module")
def report(data_root, encoders, tmp_path_factory):
    """One run by one process, batch 64."""
    folder = tmp_path_factory.mktemp("run")
    main(arguments(data_root, encoders, folder / "report", folder / "cache"))
    return folder / "report"


def scores(folder) -> dict:
    rows = read_results(folder).results
    return {
        (row["encoder"], row["benchmark"], row["dataset"], row["metric"]): (row["value"], row["low"], row["high"])
        for row in rows
    }


def test_results_are_complete(report, encoders):
    found = scores(report)
    for encoder in ("original", "dcr"):
        for metric in ("nmi", "acc", "ari"):
            for dataset in ("cifar10", "birds", "mean"):
                value, low, high = found[encoder, "clustering", dataset, metric]
                assert low <= value <= high
        for metric in ("acc1", "acc5", "mean_per_class_recall"):
            assert (encoder, "zeroshot", "cifar10", metric) in found
        assert {place[3] for place in found if place[:3] == (encoder, "linear_probe", "birds")} == {
            "acc1",
            "mean_per_class_recall",
        }
        for direction in ("image_to_text", "text_to_image"):
            for k in (1, 5, 10):
                assert (encoder, "retrieval", "flickr30k", f"{direction}_recall@{k}") in found
        assert sum(place[:2] == (encoder, "mmvp_vlm") for place in found) == 10
    for metric in ("nmi", "acc", "ari"):
        each = [found["dcr", "clustering", name, metric][0] for name in ("cifar10", "birds")]
        assert found["dcr", "clustering", "mean", metric][0] == pytest.approx(sum(each) / 2)


def test_results_say_how_they_came_about(report, encoders, data_root):
    content = json.loads((report / "results.json").read_text())
    assert {"dtype", "feature", "n"} <= set(content["results"][0])
    assert content["encoders"]["dcr"]["path"] == encoders[1].partition("=")[2]
    assert content["runs"][0]["seeds"] == [0, 1]
    assert {"torch", "transformers", "scikit-learn"} <= set(content["runs"][0]["versions"])
    assert content["data"]["MMVP_VLM"]["images"] == 36 and content["data"]["MMVP_VLM"]["revision"]


def test_every_prediction_is_kept_and_gives_the_scores(report):
    results = read_results(report)
    rows = {(row["encoder"], row["benchmark"], row["set"]): read_rows(row["path"]) for row in results.predictions}
    assert len(rows) == 12
    assert len(rows["dcr", "clustering", "cifar10"]) == 150
    assert len(rows["dcr", "retrieval", "flickr30k"]) == 20 + 40
    right = [row["ranked"][0] == row["label"] for row in rows["dcr", "zeroshot", "cifar10"]]
    assert scores(report)["dcr", "zeroshot", "cifar10", "acc1"][0] == pytest.approx(sum(right) / 150)
    pair = rows["dcr", "mmvp_vlm", "MMVP_VLM"][0]
    assert len(pair["images"]) == len(pair["statements"]) == len(pair["probabilities"]) == 2


def test_one_set_in_two_benchmarks_is_two_lists_of_images(report):
    """The probe reads both splits of the set that is clustered by its test split; it came first here."""
    results = read_results(report)
    assert results.data["birds"]["images"] == 15 and results.data["birds (train+test)"]["images"] == 39
    rows = {(row["encoder"], row["benchmark"], row["set"]): read_rows(row["path"]) for row in results.predictions}
    probed, clustered = (rows["dcr", name, "birds"] for name in ("linear_probe", "clustering"))
    assert [row["item"] for row in probed] == [f"test/{row['item']}" for row in clustered]
    assert [row["label"] for row in probed] == [row["label"] for row in clustered]
    assert [len(set(row["ranked"])) for row in probed] == [2] * 15
    assert {row["set"] for row in results.maps} == {"birds"}  # of the two the one that is clustered


def test_cached_and_batch_one_give_the_same_numbers(report, data_root, encoders, tmp_path, monkeypatch):
    main(arguments(data_root, encoders, tmp_path / "one", tmp_path / "cache", "--batch_size", "1"))
    assert scores(tmp_path / "one") == scores(report)
    monkeypatch.setattr(
        "dcr_hf.evaluation.embedding.encoders.load_dual_encoder", lambda *_: pytest.fail("weights loaded")
    )
    monkeypatch.setattr("dcr_hf.evaluation.tasks.clustering.KMeans", lambda **_: pytest.fail("clustered again"))
    monkeypatch.setattr(
        "dcr_hf.evaluation.tasks.linear_probe.LogisticRegression", lambda **_: pytest.fail("fitted again")
    )
    monkeypatch.setattr("dcr_hf.evaluation.embedding.embed.decode_image", lambda *_: pytest.fail("image read"))
    main(arguments(data_root, encoders, tmp_path / "cached", tmp_path / "cache"))
    assert scores(tmp_path / "cached") == scores(report)


def test_two_processes_give_the_same_numbers(report, data_root, encoders, tmp_path):
    command = [*TORCHRUN, ROOT / "recipes" / "evaluate.py"]
    done = run_program(*command, *arguments(data_root, encoders, tmp_path / "two", tmp_path / "cache"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert scores(tmp_path / "two") == scores(report)
    assert read_results(tmp_path / "two").runs[0]["processes"] == 2


def test_report_is_one_file_without_outside_references(report):
    page = (report / "report.html").read_text()
    references = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert len(references) > 3
    assert all(reference.startswith("data:") for reference in references)
    assert "<script" not in page
    for title in (
        "P-Ability: MMVP-VLM",
        "D-Ability: clustering",
        "Differences from original",
        "MMVP pairs that changed",
    ):
        assert title in page
    changed = page.count('class="pair"')
    results = read_results(report)
    before, after = (
        [row["correct"] for row in read_rows(each["path"])]
        for each in results.predictions
        if each["benchmark"] == "mmvp_vlm"
    )
    assert changed == sum(a != b for a, b in zip(before, after, strict=True)) > 0


def test_report_escapes_what_it_is_given(report, tmp_path):
    folder = shutil.copytree(report, tmp_path / "hostile")
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"dcr"', '"<script>alert(1)</script>"'))
    main(["--compare", str(path), "--output_dir", str(tmp_path / "out")])
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()


def test_tables_name_each_set_once_for_its_columns(report):
    page, text = (report / "report.html").read_text(), (report / "results.md").read_text()
    assert page.count('<th colspan="3" class="first">cifar10</th>') == 2  # clustering, zero-shot
    assert page.count('<th colspan="6" class="first">flickr30k</th>') == 1
    assert "| cifar10 NMI | cifar10 ACC | cifar10 ARI | birds NMI |" in text
    assert "| birds acc1 | birds acc5 | birds mean per-class recall |" in text
    assert "| flickr30k image to text R@1 |" in text


def test_sections_are_rendered_and_escaped(report, tmp_path):
    results = read_results(report)
    picture = data_uri(encoded(photographs(1)[0]), "jpeg")
    section = Section("A < B & <script>", ["First.", "<b>Second</b>."], [(picture, 'a "quoted" crop'), (picture, "x")])
    write_report(results, make_tables(results), tmp_path / "with.html", [section])
    write_report(results, make_tables(results), tmp_path / "without.html")
    page = (tmp_path / "with.html").read_text()
    assert "<h2>A &lt; B &amp; &lt;script&gt;</h2>" in page and "<script>" not in page
    assert "First. &lt;b&gt;Second&lt;/b&gt;." in page
    assert page.count(picture) == 2 and 'alt="a &#34;quoted&#34; crop"' in page
    places = [page.index(f"<h2>{title}") for title in ("Retrieval", "A &lt;", "How images lie together")]
    assert places == sorted(places)
    assert (tmp_path / "without.html").read_text() == (report / "report.html").read_text()


def test_section_needs_its_pictures_inside():
    with pytest.raises(ValueError, match=r"section 'S', figure 'f': 'https://x/y.png' is no data:image/ URI"):
        Section("S", figures=[("https://x/y.png", "f")])


def test_published_rows_are_marked(report):
    lines = (report / "results.md").read_text().splitlines()
    theirs = [line for line in lines if "OpenAI L 224" in line]
    assert len(theirs) == 7
    assert all("(paper)" in line or "(CLIP_benchmark)" in line for line in theirs)
    assert not any("(paper)" in line for line in lines if line.startswith(("| original", "| dcr")))
    assert any("33.3" in line for line in theirs)


def test_own_sets_have_no_published_rows_and_the_map_is_of_what_is_clustered(data_root, clip_folder, tmp_path):
    root = shutil.copytree(data_root, tmp_path / "data")
    (root / "MMVP_VLM").rename(root / "pairs_of_mine")
    names = ["mmvp_vlm:pairs_of_mine", "zeroshot:birds", "linear_probe:birds", "clustering:cifar10"]
    folders = ["--data_root", str(root), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    main(["--encoders", str(clip_folder), "--benchmarks", *names, "--seeds", "0", "--workers", "0", *folders])
    text = (tmp_path / "out" / "results.md").read_text()
    assert "P-Ability: pairs_of_mine" in text and "Zero-shot" in text
    assert not any(said in text for said in ("(paper)", "(CLIP_benchmark)", "135", "not measured here"))
    assert [row["set"] for row in read_results(tmp_path / "out").maps] == ["cifar10"]  # birds has fewer classes


def test_lone_tower_is_clustered_and_the_rest_refused_by_name(clip_folder, data_root, tmp_path, caplog, capsys):
    tower = tmp_path / "tower"
    CLIPVisionModel.from_pretrained(clip_folder).save_pretrained(tower)
    shutil.copy(clip_folder / "preprocessor_config.json", tower)
    common = ["--data_root", str(data_root), "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path)]
    names = ["clustering:birds", "zeroshot:birds", "linear_probe:birds"]
    main(["--encoders", f"tower={tower}", "--benchmarks", *names, "--seeds", "0", "--workers", "0", *common])
    assert "refused: zeroshot:birds for encoder tower" in caplog.text
    assert {row["benchmark"] for row in read_results(tmp_path / "out").results} == {"clustering", "linear_probe"}
    assert {row["feature"] for row in read_results(tmp_path / "out").results} == {"pooled"}
    with pytest.raises(SystemExit):
        main(["--encoders", f"tower={tower}", "--benchmarks", "mmvp_vlm", "--workers", "0", *common])
    assert "nothing to run: mmvp_vlm:MMVP_VLM for encoder tower" in capsys.readouterr().err


def test_unreadable_image_ends_the_run_by_name(clip_folder, tmp_path, capsys):
    folder = write_class_folders(tmp_path / "data" / "birds", {"a": 3, "b": 3})
    (folder / "b" / "1.png").write_bytes((folder / "b" / "1.png").read_bytes()[:-300])
    with pytest.raises(SystemExit) as error:
        main(
            [
                *("--encoders", str(clip_folder), "--benchmarks", "clustering:birds", "--workers", "1"),
                *(
                    "--data_root",
                    str(tmp_path / "data"),
                    "--output_dir",
                    str(tmp_path / "o"),
                    "--cache_dir",
                    str(tmp_path),
                ),
            ]
        )
    assert error.value.code == 2
    assert re.search(r"^\S+: error: b/1.png: damaged image", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--benchmarks", "mmvp"],
            r"unknown benchmark 'mmvp'; known: mmvp_vlm, clustering, zeroshot, linear_probe, retrieval",
        ),
        (["--benchmarks", "clustering:dtdd"], r"unknown set 'dtdd' of benchmark clustering; known: mnist, cifar10"),
        (["--benchmarks", "linear_probe:cifar10"], r"data set 'cifar10' has no training split: there is no .*/train"),
        (["--encoders", "a=/x", "a=/y"], r"the name 'a' is given twice"),
        (["--encoders", "a="], r"--encoders a=: expected NAME=FOLDER_OR_ID"),
        (["--encoders", "/nowhere"], r"'/nowhere' is neither a folder here nor a hub id"),
        (["--data_root", "/nowhere"], r"--data_root /nowhere is not a folder"),
        (["--seeds", "1", "1"], r"--seeds 1 1: give each once"),
        (["--batch_size", "0"], r"0 is not positive"),
        (["--compare", "/nowhere"], r"--compare merges earlier runs; --encoders"),
        (["--dtype", "int8"], r"invalid choice: 'int8'"),
        (["--bench_marks", "x"], r"unrecognized arguments: --bench_marks"),
    ],
)
def test_wrong_arguments(data_root, encoders, tmp_path, capsys, given, message):
    with pytest.raises(SystemExit) as error:
        main([*arguments(data_root, encoders, tmp_path / "o", tmp_path / "c"), *given])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


def test_recipe_is_short_and_says_how_it_is_run():
    text = (ROOT / "recipes" / "evaluate.py").read_text()
    assert len(text.splitlines()) <= 30
    assert "--encoders original=" in text and "accelerate launch" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (apt-get install chromium)")
def test_report_renders_in_chromium_without_a_console_message(report, tmp_path):
    picture = tmp_path / "page.png"
    done = screenshot(report / "report.html", picture)
    assert "CONSOLE" not in done.stderr
    colors = Image.open(picture).convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colors) > 500  # figures and photographs, not an error page
