"""Previews: the same images whenever the run is started, each cell by definition, and no trace in training."""

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcr_hf import DCRConfig, DCRTrainer, FrozenDenoiser
from dcr_hf.data.augment import PositiveView
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.fit import tensorboard
from dcr_hf.training.preview import Preview, draw_preview
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.runs import short_run
from helpers.tiny_models import CONDITION_WIDTH


@pytest.fixture(params=["epsilon", "velocity"])
def denoiser(request, sd_folder, sd_v_folder):
    return FrozenDenoiser.from_pretrained(str({"epsilon": sd_folder, "velocity": sd_v_folder}[request.param]))


@pytest.fixture
def model(clip_folder):
    return projector_stage(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, seed=0)


def images(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator) / 255


def preview_in(folder, denoiser, every=2):
    return Preview(folder, every, denoiser, PositiveView(32), seed=7, writes=True)


@pytest.mark.parametrize("patch_keep_ratio", [None, 0.25])
def test_each_cell_is_what_it_says(denoiser, clip_folder, tmp_path, patch_keep_ratio):
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    model = projector_stage(encoder, CONDITION_WIDTH, 0, patch_keep_ratio)
    preview = preview_in(tmp_path, denoiser)
    preview.show(images())
    torch.manual_seed(3)
    columns, errors = preview._predict(model.eval())
    assert list(columns)[:3] == ["image", "view", "noisy"] and errors.shape == (4, 4)
    assert np.array_equal(columns["image"], (images()[:4] * 255).round().byte().permute(0, 2, 3, 1).numpy())
    torch.manual_seed(3)
    view = preview.view(images()[:4])
    latents = denoiser.encode(images()[:4])
    noise, steps = torch.randn_like(latents), torch.full((4,), 500)
    noisy = denoiser.add_noise(latents, noise, steps)
    own, of_view = (
        denoiser.with_tokens(encoded.conditions, encoded.tokens) for encoded in (model(images()[:4]), model(view))
    )
    nothing = torch.zeros(4, CONDITION_WIDTH)
    abar = denoiser.scheduler.alphas_cumprod[500]
    for column, used in enumerate((own, of_view, own[[3, 0, 1, 2]], nothing)):
        predicted = denoiser.predict(noisy, steps, used)
        if denoiser.native_target == "epsilon":
            clean, found = (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt(), predicted
        else:
            clean = abar.sqrt() * noisy - (1 - abar).sqrt() * predicted
            found = abar.sqrt() * predicted + (1 - abar).sqrt() * noisy
        torch.testing.assert_close(errors[:, column], (found - noise).square().mean(dim=(1, 2, 3)))
        decoded = denoiser.vae.decode(clean / denoiser.vae.config.scaling_factor).sample.clamp(-1, 1) / 2 + 0.5
        expected = (decoded * 255).permute(0, 2, 3, 1).detach().numpy()
        assert np.abs(list(columns.values())[3 + column] - expected).max() < 1


def test_a_run_that_goes_on_shows_the_same_images(denoiser, model, tmp_path):
    first, second = preview_in(tmp_path, denoiser), preview_in(tmp_path, denoiser)
    first.show(images())
    first.show(images(seed=1))  # only the first batch counts
    second.show(images(seed=2))
    assert torch.equal(first._images, images()[:4]) and torch.equal(second._images, images()[:4])
    first.draw(model, 4)
    picture = (tmp_path / "step-0000004.png").read_bytes()
    torch.rand(9)
    second.draw(model, 4)
    assert (tmp_path / "step-0000004.png").read_bytes() == picture


def test_a_picture_is_due_once_a_step(denoiser, model, tmp_path):
    preview = preview_in(tmp_path, denoiser, every=3)
    preview.show(images())
    due = []
    for step in (0, 0, 1, 2, 3, 3, 4, 5, 6):
        if preview.is_due(step):
            due.append(step)
            preview.draw(model, step)
    assert due == [0, 3, 6]


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_previews_are_drawn_before_and_after_and_change_no_bit(clip_folder, sd_folder, tmp_path, name):
    items = [{"image": (image * 255).byte(), "key": str(i), "skipped": []} for i, image in enumerate(images(8))]

    def run(folder, **options):
        args = short_run(folder, gradient_accumulation_steps=2, report_to="tensorboard", **options)
        model = projector_stage(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, seed=0)
        if name == "stage2":
            model = encoder_stage(model.encoder, model.projector, args)
        denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
        DCRTrainer(model, args, denoiser, train_dataset=items, callbacks=tensorboard(args, None)).train()
        return model.state_dict()

    expected = run(tmp_path / "without")
    found = run(tmp_path / "with", preview_steps=2)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert not (tmp_path / "without" / "preview").exists()
    pictures = sorted((tmp_path / "with" / "preview").glob("step-*.png"))
    assert [path.name for path in pictures] == ["step-0000000.png", "step-0000002.png", "step-0000003.png"]
    contents = {path.read_bytes() for path in pictures}
    assert len(contents) == 3 and all(Image.open(path).width > 800 for path in pictures)
    board = EventAccumulator(str(tmp_path / "with" / "runs")).Reload()
    assert [event.step for event in board.Images("preview")] == [0, 2, 3]


def test_the_smallest_error_of_a_row_is_bold():
    cells = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    names = ("image", "view", "noisy", "a", "b", "c", "d")
    figure = draw_preview(dict.fromkeys(names, cells), torch.tensor([[0.2, 0.1, 0.3, 0.4], [0.5, 0.6, 0.7, 0.4]]), 12)
    labels = [[axes.xaxis.label for axes in row] for row in np.array(figure.axes).reshape(2, 7)]
    assert [[label.get_weight() == "bold" for label in row[3:]] for row in labels] == [
        [False, True, False, False],
        [False, False, False, True],
    ]
    assert labels[1][3].get_text() == "noise MSE 0.500" and "after 12 steps" in figure.get_suptitle()


def test_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--preview_steps is -1"):
        DCRConfig(output_dir=str(tmp_path), use_cpu=True, preview_steps=-1)
