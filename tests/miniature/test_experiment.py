"""The experiment trains and measures every variant once, and its table says what the runs said."""

import json

import pytest

from dcr_hf.miniature import experiment, layouts


def trial(pretrained, name, difference, p, low=-0.5, high=0.5):
    measured = {"before": 0.5, "after": 0.5 + difference, "difference": difference, "low": low, "high": high, "p": p}
    faithful = {"noise_mse/own": 0.2, "noise_mse/other": 0.3, "condition_norm": 1.0}
    return {
        "pretrained": pretrained,
        "trial": name,
        "measured": dict.fromkeys(experiment.MEASURED, measured),
        "fidelity": {"stage1": faithful, "stage2": faithful},
    }


def test_over_seeds_the_interval_is_students():
    changes = {"a": 0.01, "b": 0.02, "c": 0.06}
    found = [trial(seed, "epsilon: dcr", change, 0.01 if seed == "c" else 0.2) for seed, change in changes.items()]
    row = experiment.summarise(found)["epsilon: dcr"]["P: pairs"]
    # mean 0.03, standard deviation sqrt((4 + 1 + 9) / 2) / 100, t(0.975, 2) = 4.3027
    half = 4.3027 * (7**0.5 / 100) / 3**0.5
    assert (row["low"], row["high"]) == pytest.approx((0.03 - half, 0.03 + half), rel=1e-4)
    assert (row["better"], row["worse"], row["seeds"]) == (1, 0, 3)
    alone = experiment.summarise([trial("a", "epsilon: dcr", -0.1, 0.001, low=-0.15, high=-0.05)])
    assert (alone["epsilon: dcr"]["P: pairs"]["low"], alone["epsilon: dcr"]["P: pairs"]["worse"]) == (-0.15, 1)
    line = experiment.table(alone).splitlines()[2]
    assert line.startswith("| epsilon: dcr | -10.0 (-15.0 to -5.0), 0↑ 1↓ of 1 |") and "| 0.200 / 0.300 |" in line


def test_it_trains_and_measures_what_is_not_done(pretrained, tmp_path, monkeypatch, capsys):
    short = {"stage1_max_steps": 1, "stage2_max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 3}
    monkeypatch.setattr(experiment, "COMMON", experiment.COMMON | short | {"dataloader_num_workers": 0})
    monkeypatch.setattr(experiment, "TRAINING_IMAGES", 24)
    write = layouts.write_benchmarks
    monkeypatch.setattr(experiment, "write_benchmarks", lambda *args: write(*args, per_category=2, train=80, test=60))
    words = ["--pretrained", str(pretrained), "--output_dir", str(tmp_path), "--prediction_type", "v_prediction"]
    experiment.main([*words, "--variants", "dcr"])
    first = json.loads((tmp_path / "results-dev0.json").read_text())
    assert [each["trial"] for each in first["trials"]] == ["v_prediction: dcr"]
    assert 0 < first["trials"][0]["fidelity"]["stage1"]["noise_mse/own"] < 3
    assert (tmp_path / "results-dev0.png").read_bytes()[:4] == b"\x89PNG"
    assert "v_prediction: dcr" in capsys.readouterr().out

    run = experiment.subprocess.run
    trained = []
    monkeypatch.setattr(experiment.subprocess, "run", lambda *args, **kw: trained.append(args) or run(*args, **kw))
    experiment.main([*words, "--variants", "dcr"])
    assert not trained and json.loads((tmp_path / "results-dev0.json").read_text()) == first

    monkeypatch.setattr(experiment, "VARIANTS", experiment.VARIANTS | {"gentle stage 2": {"temperature": -1}})
    with pytest.raises(RuntimeError, match=r"gentle stage 2 of .* ended with 2: see .*log.txt"):
        experiment.main([*words, "--variants", "dcr", "gentle stage 2"])
    with pytest.raises(SystemExit):
        experiment.main(["--pretrained", str(tmp_path), "--output_dir", str(tmp_path)])
    assert "lacks clip-miniature: make it by recipes/pretrain_miniature.py" in capsys.readouterr().err
