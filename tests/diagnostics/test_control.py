"""The random control moves as far as the run, in the same weights and by changes of the same shape, and no further."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPModel

from dcr_hf import Recipe
from dcr_hf.diagnostics.__main__ import main
from dcr_hf.diagnostics.control import find_factor, random_like, write_controls
from dcr_hf.errors import UserError
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.families import check_encoder
from dcr_hf.models.results import FIXED_IMAGES
from dcr_hf.run import run
from helpers.runs import options_of_a_run


@pytest.fixture(scope="module")
def finished(clip_folder, sd_folder, shards_folder, tmp_path_factory):
    """A run whose encoder has moved."""
    output = tmp_path_factory.mktemp("run") / "out"
    recipe = Recipe(str(clip_folder), str(sd_folder), str(shards_folder), stage1_max_steps=1, stage2_max_steps=4)
    recipe.stage2_learning_rate = 1e-2
    run(recipe, options_of_a_run(output, max_bad_fraction=0.5))
    return output


def changes(folder, base):
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    return {name: after[name] - tensor for name, tensor in before.items() if not torch.equal(after[name], tensor)}


def test_it_moves_as_far_in_the_same_weights(finished, clip_folder, tmp_path):
    wanted, controls = write_controls(finished, [0, 1], tmp_path / "control")
    images = load_file(finished / "stage2" / FIXED_IMAGES)["images"] / 255
    pixels = ImageEncoder.from_pretrained(str(clip_folder)).normalize(images)

    def embed(folder):
        with torch.no_grad():
            return CLIPModel.from_pretrained(folder).get_image_features(pixel_values=pixels).pooler_output

    def distance(folder):
        return (1 - F.cosine_similarity(embed(clip_folder), embed(folder))).mean().item()

    assert distance(finished / "clip-tiny-dcr") == pytest.approx(wanted, rel=1e-3)
    trained = changes(finished / "clip-tiny-dcr", clip_folder)
    for control in controls:
        assert distance(control.folder) == pytest.approx(wanted, rel=0.011) == control.distance
        assert check_encoder(str(control.folder)) == 16  # with processor and tokenizer
        random = changes(control.folder, clip_folder)
        assert random.keys() == trained.keys()
        for name, change in trained.items():
            alike = F.cosine_similarity(change.flatten(), random[name].flatten(), dim=0).abs()
            assert alike < 0.7, name
            if change.ndim == 2:
                sizes = [torch.linalg.svdvals(each)[:8] for each in (change, random[name])]
                torch.testing.assert_close(sizes[1], control.factor * sizes[0], rtol=1e-2, atol=1e-4)
    first, second = (changes(control.folder, clip_folder) for control in controls)
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_from_the_command_line_and_refused(finished, tmp_path, capsys, refusal):
    main(["control", "--run", str(finished), "--seeds", "5"])
    printed = capsys.readouterr().out
    assert "the run moved its embeddings by 0." in printed and f"random5={finished}/control/5" in printed
    assert "control/5 exists" in refusal(main, ["control", "--run", str(finished), "--seeds", "5"])
    assert "give each once" in refusal(main, ["control", "--run", str(finished), "--seeds", "1", "1"])
    assert "run.json" in refusal(main, ["control", "--run", str(tmp_path)])
    (finished / "stage2" / FIXED_IMAGES).rename(tmp_path / "kept")
    assert "moved.safetensors" in refusal(main, ["control", "--run", str(finished), "--seeds", "6"])
    (tmp_path / "kept").rename(finished / "stage2" / FIXED_IMAGES)


def test_a_random_change_of_low_rank_keeps_its_rank_and_a_vector_its_length():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(12, 3, generator=generator) @ torch.randn(3, 7, generator=generator)
    found = random_like(change, generator)
    torch.testing.assert_close(torch.linalg.svdvals(found), torch.linalg.svdvals(change), atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(found, rtol=1e-4) == 3
    bias = torch.randn(9, generator=generator)
    assert random_like(bias, generator).norm() == pytest.approx(bias.norm().item())
    assert random_like(torch.randn(4, 3, 2, 2, generator=generator), generator).shape == (4, 3, 2, 2)


def test_the_factor_is_found_by_bisection():
    factor, distance = find_factor(lambda factor: factor**2, 30.0)
    assert factor == pytest.approx(30**0.5, rel=0.01) and distance == factor**2
    with pytest.raises(UserError, match=r"no random change moves the embeddings by 3; the largest did 1"):
        find_factor(lambda factor: 1 - 2.0**-factor, 3.0)
