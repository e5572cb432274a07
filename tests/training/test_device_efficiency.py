"""No step reads a value back from the device; waiting for data is logged; large JPEGs are not decoded whole."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from dcr_hf import DCRConfig, DCRTrainer, FrozenDenoiser
from dcr_hf.data.images import decode_image
from dcr_hf.denoiser.planner import LiveBytes
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.objectives import Diffused, Negatives, Settings, dcr
from dcr_hf.training import metrics_log as steplog
from dcr_hf.training import resumable
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.images import encoded, photographs
from helpers.runs import batch_of_conditions, short_run
from helpers.tiny_models import CONDITION_WIDTH

# What makes the host wait for a device: reading a number, and shapes that depend on values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "equal"}


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING, f"{name} makes the host wait for the device"
        assert name != "index" or all(index is None or index.dtype != torch.bool for index in args[1]), "boolean index"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder), pair_chunk_size=4)


@pytest.mark.parametrize("negatives", [Negatives(), Negatives(count=1), Negatives(detach=True)])
def test_the_objective_never_makes_the_host_wait(denoiser, negatives):
    conditions = torch.randn(3, CONDITION_WIDTH, requires_grad=True)
    with NoWaiting():
        diffused = Diffused.draw(denoiser, torch.rand(3, 3, 32, 32))
        batch = batch_of_conditions(diffused, conditions, conditions * 2)
        loss = dcr(denoiser, batch, Settings(negatives=negatives)).loss
        loss.backward()
    with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
        loss.item()


class Clock:
    """Stands still but for what adds to it. In place of the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_share_of_waiting_for_data_is_logged(clip_folder, denoiser, tmp_path, monkeypatch):
    """An image takes a second to read and a step six to compute."""
    clock = Clock()
    for module in (steplog, resumable):
        monkeypatch.setattr(module, "time", clock)

    class SlowImages(list):
        def __getitem__(self, index):
            clock.now += 1
            return super().__getitem__(index)

    class SlowTrainer(DCRTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            clock.now += 6
            return loss

    args = short_run(tmp_path, per_device_train_batch_size=2)
    pixels = [torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1) for image in photographs(10)]
    images = SlowImages({"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels))
    model = projector_stage(ImageEncoder.from_pretrained(str(clip_folder)), CONDITION_WIDTH, seed=0)
    training = SlowTrainer(model, args, denoiser, train_dataset=images)
    training.train()
    lines = [line for line in training.state.log_history if "data_wait_share" in line]
    # The first window begins when the first batch is there; then two images for each step of 2 + 6 seconds.
    assert [line["data_wait_share"] for line in lines] == [0, 2 / 8, 2 / 8]


@pytest.mark.parametrize("side, enough, decoded", [(1000, 200, 250), (1000, 400, 500), (300, 200, 300)])
def test_a_large_jpeg_is_decoded_no_larger_than_enough(side, enough, decoded):
    image = photographs(1, side=400)[0].resize((side, side // 2 * 2), Image.Resampling.BICUBIC)
    found = decode_image(encoded(image, quality=95), enough)
    assert found.size == (decoded, decoded)
    # The same picture: nothing is cropped or moved.
    whole = decode_image(encoded(image, quality=95)).resize(found.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(found, float) - np.asarray(whole, float)).mean() < 3


def test_other_formats_are_decoded_whole():
    buffer = io.BytesIO()
    photographs(1, side=400)[0].save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), enough=50).size == (400, 400)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_gradient_checkpointing_works_without_the_text_side(encoder_folders, family, tmp_path):
    args = DCRConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, lora_dropout=0.0)
    encoder = ImageEncoder.from_pretrained(str(encoder_folders[family]))
    model = encoder_stage(encoder, projector_stage(encoder, CONDITION_WIDTH, seed=0).projector, args).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    images, gradients, peaks = torch.rand(4, 3, 32, 32), [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        with LiveBytes() as live:
            gradients.append(torch.autograd.grad(model(images).conditions.square().sum(), trained))
        peaks.append(live.peak)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert peaks[1] < 0.9 * peaks[0]
