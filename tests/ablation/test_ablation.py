"""An ablation trains and measures every variant once, and its tables show the runs' results."""

import dataclasses
import json
import threading
import time
from unittest.mock import Mock

import pytest

from dcr_hf.ablation import cli, outcomes, plots, summary, trials
from dcr_hf.ablation.variants import CLAIMS, COMPARED, ORIGINAL, VARIANTS, control_of
from dcr_hf.diagnostics import curve
from dcr_hf.errors import NotFoundError
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY
from dcr_hf.evaluation.scoring.results import Results
from dcr_hf.miniature import hard_pairs, layouts

SHORT = "--stage1_max_steps 1 --stage2_max_steps 1 --logging_steps 1 --per_device_train_batch_size 3"
SHORT = [*SHORT.split(), "--dataloader_num_workers", "0"]


def outcome(variant, seed, value, change=0.0, p=1.0, low=-0.5, high=0.5, opposed=None):
    measured = {"value": value, "change": change, "low": low, "high": high, "p": p}
    faithful = {"noise_mse/own": 0.2, "noise_mse/other": 0.3, "condition_norm": 1.0}
    return {
        "variant": variant,
        "seed": seed,
        "measured": {P_ABILITY: measured, D_ABILITY: measured},
        "fidelity": {} if variant == ORIGINAL else {"stage1": faithful, "stage2": faithful},
        "opposed": opposed,
    }


def test_over_seeds_the_interval_is_students():
    found = [
        outcome("dcr", seed, 0.5, change, p) for seed, change, p in ((0, 0.01, 0.2), (1, 0.02, 0.2), (2, 0.06, 0.01))
    ]
    moved = summary.change(found, P_ABILITY)
    # mean 0.03, standard deviation sqrt((4 + 1 + 9) / 2) / 100, t(0.975, 2) = 4.3027
    half = 4.3027 * (7**0.5 / 100) / 3**0.5
    assert (moved.low, moved.high) == pytest.approx((0.03 - half, 0.03 + half), rel=1e-4)
    assert (moved.better, moved.worse, moved.seeds) == (1, 0, 3)
    alone = [outcome("dcr", 0, 0.4, -0.1, 0.001, low=-0.15, high=-0.05)]
    assert summary.change(alone, P_ABILITY)[1:] == (-0.15, -0.05, 0, 1, 1)
    line = summary.markdown(alone).splitlines()[2]
    assert line.startswith("| dcr |  | -10.0 (-15.0 to -5.0), 0↑ 1↓ | -10.0 (") and "| 0.200 / 0.300 |" in line


def test_a_claim_holds_is_contradicted_or_drowns_in_noise():
    values = {"original": (0.50, 0.51, 0.49), "dcr": (0.60, 0.62, 0.59), "reconstruction": (0.5, 0.62, 0.4)}
    found = [outcome(name, seed, each) for name, row in values.items() for seed, each in enumerate(row)]
    judged = {claim: verdict for claim, verdict, _ in summary.verdicts(found)}
    assert judged["DCR sees more details"] == judged["DCR separates categories better"] == "holds"
    assert judged["reconstruction alone harms categories"] == "within noise"
    assert "two stages see more details than one" not in judged  # which did not run
    values |= {"dcr": values["original"], "original": values["dcr"]}
    swapped = [outcome(name, seed, each) for name in ("original", "dcr") for seed, each in enumerate(values[name])]
    assert {verdict for _, verdict, _ in summary.verdicts(swapped)} == {"the opposite holds"}
    assert {verdict for _, verdict, _ in summary.verdicts([e for e in found if e["seed"] == 0])} == {
        "not decided: one seed"
    }


def test_the_naive_sums_claim_is_about_its_gradients():
    def judged(*shares):
        found = [outcome("joint", seed, 0.5, opposed=share) for seed, share in enumerate(shares)]
        return [(verdict, spread.mean) for _, verdict, spread in summary.verdicts(found)]

    assert judged(0.8, 0.82, 0.84) == [("holds", pytest.approx(0.32))]
    assert judged(0.3, 0.35, 0.4)[0][0] == "the opposite holds"
    assert judged(None, None) == []


def test_the_picture_names_what_was_changed():
    found = [outcome(name, seed, 0.5) for name in ("original", "joint", "dcr") for seed in (0, 1)]
    scatter, *changes = plots.draw(found).axes
    assert [text.get_text() for text in scatter.get_legend().get_texts()] == ["original", "joint", "dcr"]
    assert [label.get_text() for label in changes[0].get_yticklabels()] == ["joint", "dcr"]


def test_every_claim_is_about_a_variant_that_is_compared():
    named = {name for claim in CLAIMS for name in (claim.better, claim.worse)}
    controls = {control_of(name) for name in COMPARED}
    assert named <= set(COMPARED) | controls and set(COMPARED) <= set(VARIANTS)


@pytest.fixture
def few_scenes(monkeypatch):
    write = layouts.write_benchmarks
    monkeypatch.setattr(cli, "TRAINING_IMAGES", 24)
    small = {"per_category": 2, "train": 80, "test": 60}
    monkeypatch.setattr(cli, "write_benchmarks", lambda *args, **more: write(*args[:4], **small))
    hard = hard_pairs.write_hard_pairs
    monkeypatch.setattr(cli, "write_hard_pairs", lambda *args: hard(*args, pool=3))


def test_it_trains_and_measures_what_is_not_done(pretrained, few_scenes, tmp_path, monkeypatch, capsys):
    words = ["--encoder", str(pretrained / "clip-miniature"), "--denoiser", str(pretrained / "sd-miniature-v")]
    words += ["--output_dir", str(tmp_path), "--seeds", "3", *SHORT, "--draw", "dev"]
    cli.main([*words, "--variants", "original", "contrastive", "end_to_end", "dcr"])
    first = json.loads((tmp_path / "ablation-dev0.json").read_text())
    assert [(each["variant"], each["seed"], each["step"]) for each in first["runs"]] == [
        (name, 3, None) for name in ("original", "contrastive", "end_to_end", "dcr")
    ]
    assert first["chosen_on"] is None  # what is reported is what settings are chosen on
    assert 0 < first["runs"][3]["fidelity"]["stage1"]["noise_mse/own"] < 3
    assert (tmp_path / "ablation-dev0.png").read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "ablation-dev0.md").read_text()
    assert "| end_to_end |" in table and table in capsys.readouterr().out
    state = json.loads((tmp_path / "seed3" / "end_to_end" / "end_to_end" / "trainer_state.json").read_text())
    assert state["global_step"] == 2  # both stages' steps
    assert json.loads((tmp_path / "seed3" / "dcr" / "run.json").read_text())["options"]["seed"] == 3

    run, trained = trials.subprocess.run, []
    monkeypatch.setattr(trials.subprocess, "run", lambda *args, **kw: trained.append(args) or run(*args, **kw))
    cli.main([*words, "--variants", "original", "contrastive", "end_to_end", "dcr"])
    again = json.loads((tmp_path / "ablation-dev0.json").read_text())
    assert not trained and again["runs"] == first["runs"]
    # Measured again, from the same embeddings, for other benchmarks.
    cli.main([*words, "--variants", "original", "dcr", "--benchmarks", "mmvp_vlm:scene_pairs"])
    fewer = json.loads((tmp_path / "ablation-dev0.json").read_text())["runs"]
    assert not trained and [list(each["measured"]) for each in fewer] == [[P_ABILITY], [P_ABILITY]]


def test_a_checkpoint_is_chosen_on_other_scenes_and_stands_beside_its_control(
    pretrained, few_scenes, tmp_path, monkeypatch
):
    words = ["--encoder", str(pretrained / "clip-miniature"), "--denoiser", str(pretrained / "sd-miniature-v")]
    words += ["--output_dir", str(tmp_path), "--seeds", "3", *SHORT, "--stage2_max_steps", "2", "--save_steps", "1"]
    words += ["--stage2_learning_rate", "1e-2", "--controls", "2", "--hard_pairs", "1", "--num_negatives", "1"]
    run, trained = trials.subprocess.run, []
    monkeypatch.setattr(trials.subprocess, "run", lambda *args, **kw: trained.append(args[0]) or run(*args, **kw))
    variants = ["original", "reconstruction", "dcr_after_reconstruction"]
    cli.main([*words, "--variants", *variants, "--benchmarks", "mmvp_vlm:scene_pairs", "clustering:scene_shape"])
    found = json.loads((tmp_path / "ablation-test0.json").read_text())
    assert found["chosen_on"] == "dev0"
    runs = {each["variant"]: each for each in found["runs"]}
    assert list(runs) == [
        "original",
        "reconstruction",
        control_of("reconstruction"),
        "dcr_after_reconstruction",
        control_of("dcr_after_reconstruction"),
    ]
    assert all(
        list(each["measured"]) == [P_ABILITY, D_ABILITY, "pairs found alike", "blind pairs"] for each in runs.values()
    )
    for name in variants[1:]:
        points = curve.read_curve(tmp_path / "seed3" / name / "curve-dev0")
        chosen = curve.choose(points)
        assert [point.step for point in points] == [1, 2]
        assert (runs[name]["step"], runs[name]["moved"]) == (chosen.step, chosen.moved)
        control = runs[control_of(name)]
        assert control["step"] == chosen.step and control["measured"] != runs[name]["measured"]
        assert {"spread"} == control["measured"][P_ABILITY].keys() - runs[name]["measured"][P_ABILITY].keys()
    # One of the two trained the stage 1 that they share, and only options that a variant reads were given to it.
    one, other = (tmp_path / "seed3" / name / "stage1" / "projector" for name in variants[1:])
    assert one.is_dir() and all((other / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())
    states = [json.loads((each.parent / "trainer_state.json").read_text()) for each in (one, other)]
    assert states[0]["log_history"] == states[1]["log_history"] and len(trained) == 2
    assert ["--num_negatives" in command for command in trained] == [False, True]
    table = (tmp_path / "ablation-test0.md").read_text()
    assert "| reconstruction, random |" in table and "what reconstruction gains is learnt" in table


@pytest.fixture
def measuring(tmp_path, monkeypatch):
    """A `Measuring` whose measurements and controls are recorded, and not made."""
    done = {"measured": 0, "controls": []}
    data = tmp_path / "scenes"
    data.mkdir()

    def measure(encoders, data, output, *args, **more):
        done["measured"] += 1
        Results().write(output)

    monkeypatch.setattr(outcomes, "measure_encoders", measure)
    monkeypatch.setattr(outcomes, "write_controls", lambda run, seeds, *args: done["controls"].append(seeds))
    trial = trials.Trial("dcr", 0, (), tmp_path / "run", "encoder")
    return outcomes.Measuring(("mmvp_vlm:scene_pairs",), data, None, 1, tmp_path / "cache"), trial, done


def test_scenes_that_were_drawn_again_are_measured_again(measuring):
    asks, trial, done = measuring
    for drawn, expected in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        (asks.data / "scenes.json").write_text(drawn)
        asks._measure(trial, {"original": "encoder"}, "last")
        assert done["measured"] == expected


def test_another_number_of_controls_is_made(measuring):
    asks, trial, done = measuring
    for count in (1, 1, 3):
        folders = dataclasses.replace(asks, controls=count)._controls(trial, None, "last")
        assert [folder.name for folder in folders] == [*"012"][:count]
    assert done["controls"] == [[0], [0, 1, 2]]


class Job:
    """Stands for a trial: records that it runs, and waits at a barrier."""

    def __init__(self, together, started, fails=False):
        self.together, self.started, self.fails = together, started, fails
        self.stage1, self.is_finished = None, False

    def train(self, launcher):
        self.started.append(self)
        self.together.wait(timeout=20)
        if self.fails:
            raise RuntimeError("ended with 1")


def test_jobs_run_at_the_same_time():
    started, together = [], threading.Barrier(2)  # breaks unless two wait at it at once
    trials.train_all([Job(together, started) for _ in range(4)], [], jobs=2)
    assert len(started) == 4


def test_those_who_share_a_stage_1_wait_for_the_one_that_trains_it():
    order, busy = [], threading.Lock()

    class Sharing(Job):
        def __init__(self, stage1, finished=False):
            super().__init__(None, order)
            self.stage1, self.is_finished, self.leader = stage1, finished, None

        def train(self, launcher, leader=None):
            self.leader = leader
            time.sleep(0.2 if leader is None else 0)
            with busy:
                order.append(self)

    first, second, alone = Sharing((0, "a")), Sharing((0, "a")), Sharing(None)
    other, done = Sharing((1, "a")), Sharing((1, "a"), finished=True)
    trials.train_all([first, second, alone, other, done], [], jobs=4)
    assert second.leader is first and other.leader is done and (first.leader, alone.leader) == (None, None)
    assert order.index(first) < order.index(second) and len(order) == 5


def test_after_a_failure_nothing_else_is_started():
    started, alone = [], threading.Barrier(1)
    jobs = [Job(alone, started), Job(alone, started, fails=True)]
    jobs += [Job(alone, started) for _ in range(20)]
    jobs[2].train = lambda launcher: time.sleep(1)  # the one that may have begun meanwhile
    with pytest.raises(RuntimeError, match="ended with 1"):
        trials.train_all(jobs, [], jobs=1)
    assert started == jobs[:2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "nowhere{seed}"], "nowhere3"),
        (["--temprature", "1"], "Did you mean temperature"),
        (["--objective", "joint"], "--objective is what the ablation varies (reconstruction)"),
        (["--variants", "dcr", "dcr"], "names dcr twice"),
        (["--jobs", "0"], "--jobs 0"),
        (["--controls", "-1"], "--controls -1: at least 0 is needed"),
        (["--hard_pairs", "501"], "--hard_pairs 501: they are chosen from 500 of each pattern"),
        (["--hard_pairs", "1", "--data_root", "."], "with --data_root, leave it out"),
        (["--launcher", "accelerate 'launch"], "--launcher accelerate 'launch: No closing quotation"),
        (["--data_root", "nowhere", "--benchmarks", "clustering:nothing"], "unknown set 'nothing'"),
        (["--benchmarks", "clustering:nothing"], "nothing"),
    ],
)
def test_mistakes_end_it_before_anything_is_trained(words, message, pretrained, few_scenes, tmp_path, capsys):
    given = ["--encoder", str(pretrained / "clip-miniature"), "--denoiser", str(pretrained / "sd-miniature-v")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*given, "--output_dir", str(tmp_path), "--seeds", "3", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "seed3").exists()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError])
def test_errors_of_the_program_keep_their_traceback(kind, pretrained, few_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "prepare", Mock(side_effect=kind("a bug")))
    given = ["--encoder", str(pretrained / "clip-miniature"), "--denoiser", str(pretrained / "sd-miniature-v")]
    with pytest.raises(kind, match=r"^a bug$"):
        cli.main([*given, "--output_dir", str(tmp_path), "--variants", "original"])


def test_a_launcher_that_does_not_exist_is_named(tmp_path):
    trial = trials.Trial("dcr", 0, ("--output_dir", str(tmp_path)), tmp_path / "run", "encoder")
    with pytest.raises(NotFoundError, match=r"--launcher nowhere: .*No such file"):
        trial.train(["nowhere"])
