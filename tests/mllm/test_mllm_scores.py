"""Scores by hand; a model that is always right, one that always says A, one that says nothing that can be used."""

import numpy as np
import pytest

from dcr_hf.evaluation.scoring.statistics import wilson
from dcr_hf.mllm.benchmarks import BENCHMARKS, predict, read_benchmarks
from helpers.mllm_layouts import CV_ROWS, right_answer, write_cv_bench, write_mmvp_questions, write_naturalbench


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmvp_questions(root / "MMVP")
    write_naturalbench(root / "NaturalBench", count=6)
    write_cv_bench(root / "CV-Bench")
    return read_benchmarks(list(BENCHMARKS), root)


def rows_of(data, name, say):
    return predict(name, data[name], {question.item: say(question) for question in data[name].questions})


def scores(data, name, say):
    scored = BENCHMARKS[name].score(data[name].title, rows_of(data, name, say))
    return {(row["dataset"], row["metric"]): row for row in scored.scores}


def values(data, name, say):
    return {place: row["value"] for place, row in scores(data, name, say).items()}


def test_a_model_that_is_always_right_gets_everything(data):
    """By the corrected labels: by MMVP's official ones it loses the two pairs with the wrong ones."""
    for name in ("naturalbench", "cv_bench"):
        assert set(values(data, name, right_answer).values()) == {1.0}
    found = values(data, "mmvp", right_answer)
    assert found["corrected", "pair_accuracy"] == found["corrected", "accuracy"] == 1.0
    assert found["official", "pair_accuracy"] == pytest.approx(148 / 150)
    assert found["official", "accuracy"] == pytest.approx(296 / 300)
    official = values(data, "mmvp", lambda question: f"({question.facts['answer']})")
    assert official["official", "pair_accuracy"] == 1.0 and official["corrected", "pair_accuracy"] == pytest.approx(
        148 / 150
    )


def test_a_model_that_always_says_a(data):
    """Documented in docs/mllm.md: no pair, no group; half of what is about letters; in CV-Bench the share of (A)."""
    found = values(data, "mmvp", lambda question: "A")
    for labels in ("official", "corrected"):
        assert found[labels, "pair_accuracy"] == 0.0 and found[labels, "accuracy"] == 0.5
    found = values(data, "naturalbench", lambda question: "A")
    assert found["all", "acc"] == pytest.approx(2 / 6 / 2)  # two of six groups are multiple choices
    assert [found["all", metric] for metric in ("q_acc", "i_acc", "g_acc")] == [0.0, 0.0, 0.0]
    found = values(data, "cv_bench", lambda question: "A")
    by_hand = {"ADE20K": 1 / 2, "COCO": 2 / 3, "Omni3D": 2 / 5, "3D": 2 / 5, "2D": (1 / 2 + 2 / 3) / 2}
    for name, value in by_hand.items():
        assert found[name, "accuracy"] == pytest.approx(value)
    assert found["overall", "accuracy"] == pytest.approx((by_hand["2D"] + by_hand["3D"]) / 2)
    assert found["all", "micro_accuracy"] == pytest.approx(sum(answer == "A" for *_, answer in CV_ROWS) / 10)


def test_replies_that_name_no_option_are_wrong(data):
    for name in BENCHMARKS:
        rows = rows_of(data, name, lambda question: "I am not sure.")
        assert {row["prediction"] for row in rows} == {None} and not any(row["correct"] for row in rows)
        assert set(values(data, name, lambda question: "I am not sure.").values()) == {0.0}


def test_mmvp_by_hand(data):
    """Right: 1, 2 (a pair), 3 (half a pair), 279 and 280 by the labels that were published."""
    said = {"1": "(a)", "2": "Closed", "3": "a", "4": "a", "279": "a", "280": "b"}
    found = scores(data, "mmvp", lambda question: said.get(question.item, "perhaps"))
    official, corrected = (found[labels, "pair_accuracy"] for labels in ("official", "corrected"))
    assert (official["count"], official["n"], corrected["count"]) == (2, 150, 1)
    assert found["official", "accuracy"]["value"] == pytest.approx(5 / 300)
    assert found["corrected", "accuracy"]["value"] == pytest.approx(3 / 300)
    assert (official["low"], official["high"]) == pytest.approx(wilson(2 / 150, 150))
    assert official["chance"] == 0.25


def test_naturalbench_by_hand(data):
    wrong = {"1/question 0/image 0", "2/question 0/image 1", "2/question 1/image 1", "3/question 1/image 0"}
    wrong |= {"3/question 0/image 1"}
    found = scores(data, "naturalbench", lambda each: "none" if each.item in wrong else each.facts["answer"])
    assert found["all", "acc"]["value"] == pytest.approx(19 / 24)
    # Wrong questions: 1/0; 2/0, 2/1; 3/0, 3/1. Wrong images: 1/0; 2/1; 3/0, 3/1.
    assert found["all", "q_acc"]["value"] == pytest.approx(7 / 12)
    assert found["all", "i_acc"]["value"] == pytest.approx(8 / 12)
    assert found["all", "g_acc"]["value"] == pytest.approx(3 / 6) and found["all", "g_acc"]["count"] == 3
    assert [found["all", metric]["n"] for metric in ("acc", "q_acc", "i_acc", "g_acc")] == [24, 12, 12, 6]


def test_cv_bench_by_hand(data):
    right = {"0", "2", "3", "5", "6", "7", "8"}
    found = scores(data, "cv_bench", lambda each: each.facts["answer"] if each.item in right else "neither")
    by_hand = {"ADE20K": 1 / 2, "COCO": 2 / 3, "2D": 7 / 12, "Omni3D": 4 / 5, "3D": 4 / 5, "overall": 83 / 120}
    by_hand |= {"Count": 2 / 3, "Relation": 1 / 2, "Depth": 2 / 3, "Distance": 1.0}
    for name, value in by_hand.items():
        assert found[name, "accuracy"]["value"] == pytest.approx(value), name
    assert found["all", "micro_accuracy"]["value"] == pytest.approx(7 / 10)
    assert found["overall", "authors_accuracy"]["value"] == pytest.approx(83 / 120)
    assert found["ADE20K", "accuracy"]["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert [found[name, "accuracy"]["n"] for name in ("2D", "3D", "overall")] == [5, 5, 10]


@pytest.mark.parametrize(("said", "ours", "authors"), [("{}) so", 1, 1), ("({})", 1, 0), ("It is {}.", 1, 0)])
def test_cv_benchs_authors_count_the_first_character_alone(data, said, ours, authors):
    found = scores(data, "cv_bench", lambda each: said.format(each.facts["answer"]))
    assert found["overall", "accuracy"]["value"] == ours
    assert found["overall", "authors_accuracy"]["value"] == authors


@pytest.mark.parametrize(("name", "group"), [("mmvp", 2), ("naturalbench", 4)])
def test_intervals_are_of_groups(data, name, group):
    """A model that is right about complete groups has as many observations as there are groups."""
    questions = data[name].questions
    names = list(dict.fromkeys(each.facts["group"] for each in questions))
    good = set(names[: len(names) // 2])
    place = ("official", "accuracy") if name == "mmvp" else ("all", "acc")
    rows = rows_of(data, name, lambda each: each.facts["answer"] if each.facts["group"] in good else "none")
    scored = BENCHMARKS[name].score("set", rows)
    deviation = np.sqrt(0.25 / len(names))
    assert scored.samples[place].std() == pytest.approx(deviation, rel=0.12)
    assert deviation > 1.3 * np.sqrt(0.25 / (len(names) * group))  # what single questions would have


def test_cv_bench_interval_of_a_mean_of_sources(data):
    rows = rows_of(data, "cv_bench", lambda each: "A") * 30
    scored = BENCHMARKS["cv_bench"].score("set", rows)
    parts = {"ADE20K": (1 / 2, 60), "COCO": (2 / 3, 90)}
    variance = sum(value * (1 - value) / n for value, n in parts.values()) / 4
    assert scored.samples["2D", "accuracy"].std() == pytest.approx(np.sqrt(variance), rel=0.12)
    assert set(scored.correct) >= {("COCO", "accuracy"), ("3D", "accuracy"), ("all", "micro_accuracy")}
