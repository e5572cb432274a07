import colorsys

import pytest
import torch
from torch.nn import functional as F

from dcr_hf.data.augment import PositiveView
from dcr_hf.data.released_view import TorchvisionView, blend, grey, shift_hue
from dcr_hf.models.encoder import ImageEncoder
from helpers.images import photographs


def photos(count, side=64):
    return torch.stack(
        [
            torch.tensor(list(image.getdata())).view(side, side, 3).permute(2, 0, 1) / 255
            for image in photographs(count, side)
        ]
    )


def test_views_stay_in_the_unit_interval_and_near_their_image():
    images = photos(6)
    torch.manual_seed(0)
    views = PositiveView(64)(images)
    assert views.shape == images.shape and views.min() >= 0 and views.max() <= 1
    distance = torch.cdist(views.flatten(1), images.flatten(1))
    assert (distance.argmin(dim=1) == torch.arange(6)).all()
    assert (views - images).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_every_image_has_its_own_parameters():
    torch.manual_seed(0)
    views = PositiveView(32)(photos(1, 32).expand(8, -1, -1, -1))
    different = torch.pdist(views.flatten(1)) > 1e-3
    assert different.all()


def test_the_seed_repeats_the_view():
    view, images = PositiveView(32), photos(3, 32)
    torch.manual_seed(3)
    first = view(images)
    torch.manual_seed(3)
    assert torch.equal(view(images), first)


def orientations(flips):
    """Signs of the horizontal and vertical slopes of views of a picture that brightens to the right and downwards."""
    ramp = torch.linspace(0.2, 0.6, 32)
    images = (ramp[None, :] * 0.5 + ramp[:, None] * 0.5).expand(64, 3, 32, 32)
    torch.manual_seed(0)
    views = PositiveView(32, flips=flips)(images).mean(dim=1)
    right = (views[:, :, -1] - views[:, :, 0]).mean(dim=1) > 0
    down = (views[:, -1] - views[:, 0]).mean(dim=1) > 0
    return set(zip(right.tolist(), down.tolist(), strict=True))


def test_flips_only_by_option_and_then_in_both_axes():
    assert orientations(flips=False) == {(True, True)}
    assert orientations(flips=True) == {(True, True), (True, False), (False, True), (False, False)}


def test_the_released_view_is_torchvisions_in_the_encoders_normalised_space(clip_folder):
    encoder, images = ImageEncoder.from_pretrained(str(clip_folder)), photos(3, 32)
    view = PositiveView(32, normalized_by=encoder)
    torch.manual_seed(0)
    found = view(images)
    torch.manual_seed(0)
    expected = []
    for image in encoder.normalize(images):
        top, left, height, width = view.augment.draw_box(32, 32)
        box = image[None, :, top : top + height, left : left + width]
        image = F.interpolate(box, (32, 32), mode="bilinear", antialias=True)[0]
        for operation in view.augment.draw_jitter():
            image = operation(image)
        expected.append(image)
    torch.testing.assert_close(found, encoder.denormalize(torch.stack(expected)))


def test_torchvisions_jitter_by_hand():
    image = torch.tensor([[[0.2, 1.5]], [[0.4, -0.5]], [[0.6, 0.5]]])  # (3, 1, 2)
    zeros = torch.zeros_like(image)
    assert blend(image, zeros, 1.1).flatten().tolist() == pytest.approx([0.22, 1.0, 0.44, 0.0, 0.66, 0.55])
    greys = [0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6, 0.2989 * 1.5 - 0.587 * 0.5 + 0.114 * 0.5]
    assert grey(image).flatten().tolist() == pytest.approx(greys)
    mixed = [0.9 * value + 0.1 * greys[place % 2] for place, value in enumerate(image.flatten().tolist())]
    clamped = [min(max(value, 0.0), 1.0) for value in mixed]
    assert blend(image, grey(image), 0.9).flatten().tolist() == pytest.approx(clamped)


@pytest.mark.parametrize("shift", [-0.05, 0.0, 0.03, 0.4])
def test_the_hue_turns_as_in_the_standard_library(shift):
    colours = torch.rand(3, 5, 40, generator=torch.Generator().manual_seed(0))
    colours[:, 0] = colours[0, 0]  # greys
    colours[:, 1, :3] = torch.eye(3)
    turned = shift_hue(colours, shift).flatten(1).T.tolist()
    for colour, found in zip(colours.flatten(1).T.tolist(), turned, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        assert found == pytest.approx(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), abs=1e-5)


def test_a_turned_hue_leaves_values_above_one_as_they_are():
    """torchvision clamps after the other three operations, not here: so their order matters."""
    image = torch.tensor([2.0, 0.5, 0.5]).view(3, 1, 1)
    assert shift_hue(image, 0.0).flatten().tolist() == pytest.approx([2.0, 0.5, 0.5])
    assert blend(image, torch.zeros_like(image), 1.0).max() == 1


def test_torchvisions_boxes_are_whole_pixels_and_fit():
    view, seen = TorchvisionView(64, flips=False), []
    torch.manual_seed(0)
    for _ in range(300):
        top, left, height, width = view.draw_box(64, 64)
        assert 0 <= top <= 64 - height and 0 <= left <= 64 - width
        seen.append((height * width / 64**2, width / height))
    areas, aspects = map(torch.tensor, zip(*seen, strict=True))
    assert areas.min() > 0.88 and 0.93 < areas.mean() < 0.97 and areas.max() <= 1
    assert aspects.min() > 0.88 and aspects.max() < 1.13


@pytest.mark.parametrize("flips", [False, True])
def test_no_gradient_flows_through_the_view(flips):
    images = photos(2, 32).requires_grad_()
    assert not PositiveView(32, flips=flips)(images).requires_grad
