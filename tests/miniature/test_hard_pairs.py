"""Pairs that a CLIP finds alike, chosen by looking at them or by other scenes."""

import csv

import numpy as np
import pytest

from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.miniature import hard_pairs
from dcr_hf.miniature.hard_pairs import ALIKE, BLIND, features, predict_similarities, write_hard_pairs
from dcr_hf.miniature.layouts import PAIRS, pairs
from dcr_hf.miniature.models import CLIP_FOLDER, SHIPPED
from dcr_hf.miniature.scenes import ATTRIBUTES


@pytest.fixture
def looks(monkeypatch):
    """Which scenes were drawn, by the folder or purpose."""
    seen = {}
    write = hard_pairs.write_pairs

    def record(folder, some, size):
        seen[folder.name] = {scene.look for _, *both in some for scene in both}
        return write(folder, some, size)

    monkeypatch.setattr(hard_pairs, "write_pairs", record)
    predict = hard_pairs.predict_similarities

    def recorded(known, cosines, unseen):
        seen["those that chose"] = {scene.look for _, *both in known for scene in both}
        return predict(known, cosines, unseen)

    monkeypatch.setattr(hard_pairs, "predict_similarities", recorded)
    return seen


def test_both_are_harder_than_others_and_blind_pairs_share_no_scene_with_those_that_chose_them(tmp_path, looks):
    found = write_hard_pairs(tmp_path, str(SHIPPED / CLIP_FOLDER), "dev", 4, 32, pool=40)
    assert found["all"] < found[BLIND] < found[ALIKE]
    assert not looks[BLIND] & looks["those that chose"] and looks[ALIKE] < looks["those that chose"]
    ordinary = {scene.look for _, *both in pairs("dev", 40) for scene in both}
    assert not ordinary & (looks[BLIND] | looks["those that chose"])
    for name in (ALIKE, BLIND):
        with (tmp_path / name / "Questions.csv").open(encoding="utf-8") as file:
            kinds = [row["Type"] for row in csv.DictReader(file)]
        assert kinds == [category for category in CATEGORIES for _ in range(8)]
    looks.clear()
    assert write_hard_pairs(tmp_path, str(SHIPPED / CLIP_FOLDER), "dev", 4, 32, pool=40) == found and not looks
    assert PAIRS not in (ALIKE, BLIND)


def test_what_makes_a_pair_hard_is_learnt_from_how_it_is_drawn():
    """Here by the strength of the detail alone: the regression finds it for scenes that it has not seen."""
    seen, unseen = list(pairs("dev", 60, 7)), list(pairs("dev", 60, 8))
    strength = len(features(seen[0])) - len(ATTRIBUTES)  # where the strengths of the nine details begin

    def hardness(some):
        return np.array([1 - features(pair)[strength + ATTRIBUTES.index(pair[0])] for pair in some])

    predicted = predict_similarities(seen, hardness(seen), unseen)
    assert np.corrcoef(predicted, hardness(unseen))[0, 1] > 0.8
