"""Scenes are what their seed says, byte for byte; attributes are independent; backgrounds know nothing of classes."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcr_hf.evaluation.readers.mmvp import CATEGORIES
from dcr_hf.miniature.captions import NAMED_WITH_FINE_CLASSES, coarse_caption, describe, full_caption
from dcr_hf.miniature.drawing import render
from dcr_hf.miniature.models import CLIP_FOLDERS, MAX_TOKENS, make_tokenizer
from dcr_hf.miniature.scenes import ATTRIBUTES, DRAWS, SHAPES, sample_scene


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    program = (
        "import hashlib\n"
        "from dcr_hf.miniature.drawing import render\n"
        "from dcr_hf.miniature.scenes import sample_scene\n"
        "digest = hashlib.sha256()\n"
        "for index in range(20): digest.update(render(sample_scene('dev', index, 3)).tobytes())\n"
        "print(digest.hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    here = hashlib.sha256()
    for index in range(20):
        here.update(render(sample_scene("dev", index, 3)).tobytes())
    assert there.stdout.strip() == here.hexdigest(), there.stderr


def test_draws_seeds_and_indices_share_no_image():
    places = [(draw, index, seed) for draw in DRAWS for seed in (0, 1) for index in range(60)]
    images = {render(sample_scene(*place)).tobytes() for place in places}
    assert len(images) == len(places)
    with pytest.raises(ValueError, match="unknown draw 'val'; there are train, dev, test"):
        sample_scene("val", 0)


def test_there_are_eight_classes_and_an_attribute_for_each_of_mmvps_patterns():
    assert len(SHAPES) == 8 and len(ATTRIBUTES) == len(CATEGORIES) == 9
    scenes = [sample_scene("train", index) for index in range(4000)]
    for attribute in ATTRIBUTES:
        for shape in SHAPES:  # independent of the class: the same shares within each
            of_shape = [getattr(scene, attribute.name) for scene in scenes if scene.shape == shape]
            shares = [of_shape.count(value) / len(of_shape) for value in attribute.values]
            assert shares == pytest.approx([1 / len(attribute.values)] * len(shares), abs=0.08)


def test_the_background_is_independent_of_the_class_and_of_every_attribute():
    scene = sample_scene("train", 5)
    corner = np.s_[20:25, 0:2]  # where nothing is drawn
    pixels = np.asarray(render(scene))[corner]
    for shape in SHAPES:
        assert (np.asarray(render(scene.changed("shape", shape)))[corner] == pixels).all()
    for attribute in ATTRIBUTES:
        for value in attribute.values:
            assert (np.asarray(render(scene.changed(attribute.name, value)))[corner] == pixels).all()
    other = np.asarray(render(scene, background=sample_scene("train", 6).look))
    assert np.abs(other[corner].astype(int) - pixels).mean() > 2


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda each: each.name)
@pytest.mark.parametrize("size", [32, 64])
def test_each_value_is_drawn_now_faintly_now_plainly_and_changes_little_else(attribute, size):
    amounts, strengths = [], []
    for index in range(40):
        scene = sample_scene("test", index)
        images = [np.asarray(render(scene.changed(attribute.name, value), size), int) for value in attribute.values]
        for first, second in itertools.combinations(images, 2):
            changed = np.abs(first - second).max(axis=2)
            assert 0 < changed.max() and (changed > 12).mean() < 0.6
            amounts.append(changed.mean())
            strengths.append(np.quantile(changed, 0.99))
    assert 2 * np.quantile(amounts, 0.1) < np.quantile(amounts, 0.9)
    assert np.quantile(strengths, 0.9) > 40


def test_captions_name_what_is_asked_and_fit_the_text_tower():
    scene = sample_scene("train", 0)
    scene = scene.changed("color", "red").changed("orientation", "left").changed("shape", "star")
    assert describe(scene, []) == "a star"
    assert describe(scene, ["orientation", "color"]) == "a red star facing left"
    tokenizer = make_tokenizer()
    longest = 0
    for index in range(500):
        caption = full_caption(sample_scene("train", index))
        tokens = tokenizer(caption).input_ids
        assert len(tokens) == len(caption.split()) + 2  # a word is a token
        longest = max(longest, len(tokens))
    assert longest <= MAX_TOKENS
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == caption.lower()


def test_the_tokenizer_is_the_same_at_every_call():
    vocabularies = {tuple(sorted(make_tokenizer().get_vocab().items())) for _ in range(5)}
    assert len(vocabularies) == 1


def test_coarse_captions_name_attributes_as_rarely_as_they_are_told_to():
    scene = sample_scene("train", 1).changed("color", "blue")
    random = np.random.default_rng(0)
    said = [coarse_caption(scene, random, {"color": 0.3, "count": 0.0}) for _ in range(2000)]
    assert 0.26 < np.mean(["blue" in caption for caption in said]) < 0.34
    assert not any("dot" in caption for caption in said)


def test_captions_of_fine_classes_always_name_them(pretrained):
    random = np.random.default_rng(0)
    scenes = [sample_scene("train", index) for index in range(200)]
    named = [coarse_caption(scene, random, NAMED_WITH_FINE_CLASSES) for scene in scenes]
    assert all(scene.fine in caption for scene, caption in zip(scenes, named, strict=True))
    assert len({scene.fine for scene in scenes}) > 80
    plain = [coarse_caption(scene, random) for scene in scenes]
    assert sum(scene.fine in caption for scene, caption in zip(scenes, plain, strict=True)) < 40
    coarse, fine = (load_file(pretrained / folder / "model.safetensors") for folder in CLIP_FOLDERS.values())
    assert coarse.keys() == fine.keys() and not torch.equal(coarse["logit_scale"], fine["logit_scale"])
