"""Paired tests and merged runs: the same results from one run of two encoders and from two runs of one each."""

import json

import pytest

from dcr_hf.evaluation.cli import main
from dcr_hf.evaluation.scoring.results import read_results
from helpers.evaluation_layouts import write_class_folders, write_mmvp
from helpers.tiny_models import save_clip


@pytest.fixture(scope="module")
def runs(clip_folder, tmp_path_factory):
    """Folders: both encoders in one run, and each in its own."""
    root = tmp_path_factory.mktemp("runs")
    write_mmvp(root / "data" / "MMVP_VLM", pairs=18)
    write_class_folders(root / "data" / "birds", {"a": 9, "b": 8, "c": 7})
    other = save_clip(root / "clip-other", seed=1)
    named = {"original": f"original={clip_folder}", "dcr": f"dcr={other}"}
    for name, encoders in {"both": list(named.values()), **{name: [each] for name, each in named.items()}}.items():
        evaluate(root, name, encoders, ["mmvp_vlm", "clustering:birds", "zeroshot:birds"])
    return root


def evaluate(root, name, encoders, benchmarks, *more):
    common = ["--data_root", str(root / "data"), "--cache_dir", str(root / "cache"), "--seeds", "0", "1"]
    output = ["--output_dir", str(root / name), "--workers", "0", *more]
    main(["--encoders", *encoders, "--benchmarks", *benchmarks, *common, *output])


def test_two_runs_make_the_table_of_one(runs, tmp_path):
    main(
        ["--compare", str(runs / "original" / "results.json"), str(runs / "dcr"), "--output_dir", str(tmp_path / "m")]
    )
    merged, both = read_results(tmp_path / "m"), read_results(runs / "both")
    assert merged.results and merged.comparisons
    assert sorted(map(json.dumps, merged.results)) == sorted(map(json.dumps, both.results))
    assert merged.comparisons == both.comparisons
    first, second = ((runs / "both" / "results.md").read_text(), (tmp_path / "m" / "results.md").read_text())
    assert first == second
    assert (tmp_path / "m" / "report.html").read_text().count("t-SNE map") == 2


def test_comparison_rows(runs):
    rows = {(row["dataset"], row["metric"]): row for row in read_results(runs / "both").comparisons}
    pairs = rows["all", "pair_accuracy"]
    values = {row["encoder"]: row for row in read_results(runs / "both").results if row["dataset"] == "all"}
    assert pairs["test"] == "mcnemar"
    assert pairs["gained"] - pairs["lost"] == values["dcr"]["count"] - values["original"]["count"]
    assert pairs["difference"] == pytest.approx(values["dcr"]["value"] - values["original"]["value"])
    assert rows["birds", "nmi"]["test"] == rows["birds", "acc1"]["test"] == "bootstrap"
    assert all(row["noise"] == (row["p"] >= 0.05) for row in rows.values())
    text = (runs / "both" / "results.md").read_text()
    assert text.count("inside the noise |") == sum(row["noise"] for row in rows.values()) > 0


def test_an_encoder_against_itself_is_noise(runs, clip_folder, tmp_path):
    evaluate(runs, "twins", [f"a={clip_folder}", f"b={clip_folder}"], ["mmvp_vlm", "clustering:birds"])
    rows = read_results(runs / "twins").comparisons
    assert rows and all(row["difference"] == 0 and row["p"] == 1.0 and row["noise"] for row in rows)


def test_one_name_for_two_encoders_is_told_apart(runs, tmp_path):
    evaluate(runs, "later", [f"original={runs / 'clip-other'}"], ["mmvp_vlm"])
    main(["--compare", str(runs / "original"), str(runs / "later"), "--output_dir", str(tmp_path / "m")])
    merged = read_results(tmp_path / "m")
    assert list(merged.encoders) == ["original", "original (later)"]
    main(["--compare", str(runs / "original"), str(runs / "both"), "--output_dir", str(tmp_path / "n")])
    merged = read_results(tmp_path / "n")
    assert list(merged.encoders) == ["original", "dcr"]
    places = [(row["encoder"], row["benchmark"], row["dataset"], row["metric"]) for row in merged.results]
    assert len(places) == len(set(places))


def test_other_data_or_features_are_not_compared(runs, clip_folder, tmp_path, caplog):
    write_class_folders(tmp_path / "data" / "birds", {"a": 9, "b": 8, "c": 6})
    evaluate(tmp_path, "fewer", [f"x={runs / 'clip-other'}"], ["clustering:birds"])
    main(["--compare", str(runs / "original"), str(tmp_path / "fewer"), "--output_dir", str(tmp_path / "m")])
    assert "original and x differ in items" in caplog.text
    assert read_results(tmp_path / "m").comparisons == []
    evaluate(runs, "pooled", [f"y={runs / 'clip-other'}"], ["clustering:birds"], "--feature", "pooled")
    main(["--compare", str(runs / "original"), str(runs / "pooled"), "--output_dir", str(tmp_path / "n")])
    assert "original and y differ in features" in caplog.text
    assert read_results(tmp_path / "n").comparisons == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results at"),
        ("{", "is no results.json"),
        ('{"results": []}', "is no results.json"),
        ('{"format": 99}', "has format 99, this program reads 1"),
    ],
)
def test_what_cannot_be_compared(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit):
        main(["--compare", str(tmp_path / "results.json"), "--output_dir", str(tmp_path / "m")])
    assert message in capsys.readouterr().err
