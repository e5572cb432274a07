import pytest
import torch

from dcr_hf.data.augment import PositiveView
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


def test_the_released_codes_view_clamps_normalised_pixels(clip_folder):
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    images = photos(4, 32)
    torch.manual_seed(0)
    ours = encoder.normalize(PositiveView(32)(images))
    torch.manual_seed(0)
    released = encoder.normalize(PositiveView(32, normalized_by=encoder)(images))
    assert ours.min() < -0.5 and ours.max() > 1.2
    assert released.min() >= -1e-5 and released.max() <= 1 + 1e-5


@pytest.mark.parametrize("flips", [False, True])
def test_no_gradient_flows_through_the_view(flips):
    images = photos(2, 32).requires_grad_()
    assert not PositiveView(32, flips=flips)(images).requires_grad
