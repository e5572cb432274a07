"""How far the encoder has come: by hand, without an effect on training, and the same after a resume."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.results import FIXED_IMAGES
from dcr_hf.training.moved import Moved
from dcr_hf.training.stages import encoder_stage, projector_stage
from dcr_hf.training.trainer import DCRTrainer
from helpers.runs import short_run
from helpers.tiny_models import CONDITION_WIDTH


@pytest.fixture
def trained(clip_folder, sd_folder, tmp_path):
    """Trains the encoder for some steps: (trainer, logged distances)."""

    def train(observes=True, trains_encoder=True, **options):
        args = short_run(tmp_path / f"out{observes}", learning_rate=1e-2, **options)
        encoder = ImageEncoder.from_pretrained(str(clip_folder))
        model = projector_stage(encoder, CONDITION_WIDTH, seed=0)
        if trains_encoder:
            model = encoder_stage(encoder, model.projector, args)
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=draw)
        items = [{"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels)]
        trainer = DCRTrainer(model, args, FrozenDenoiser.from_pretrained(str(sd_folder)), train_dataset=items)
        if not observes:
            trainer.moved = None
        trainer.train()
        return trainer, [line["moved"] for line in trainer.state.log_history if "moved" in line]

    return train


@pytest.mark.parametrize("options", [{}, {"lora_rank": 0}])
def test_the_distance_by_hand(trained, clip_folder, tmp_path, options):
    trainer, distances = trained(**options)
    images = load_file(tmp_path / "outTrue" / FIXED_IMAGES)["images"] / 255
    assert images.shape == (4, 3, 32, 32)
    with torch.no_grad():
        before, after = (
            e.eval()(images) for e in (ImageEncoder.from_pretrained(str(clip_folder)), trainer.model.encoder)
        )
    assert distances[-1] == pytest.approx((1 - F.cosine_similarity(before, after)).mean().item(), abs=1e-6)
    assert len(distances) == 3 and 1e-5 < distances[0] < distances[-1]


def test_it_changes_nothing(trained):
    with_it, without = (trained(observes)[0].model.state_dict() for observes in (True, False))
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_it.items())


def test_a_frozen_encoder_has_no_distance(trained):
    assert trained(trains_encoder=False)[1] == []


def test_a_run_that_resumes_goes_on_from_the_original(clip_folder, tmp_path, caplog):
    encoder, images = ImageEncoder.from_pretrained(str(clip_folder)), torch.rand(20, 3, 32, 32)
    first, resumed, lost = Moved(tmp_path), Moved(tmp_path), Moved(tmp_path / "elsewhere")
    first.begin(encoder, images, is_new=True, rank=0)
    assert first.distance(encoder) == pytest.approx(0.0, abs=1e-12)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    resumed.begin(encoder, torch.rand(20, 3, 32, 32), is_new=False, rank=0)
    assert resumed.distance(encoder) == first.distance(encoder) > 1e-5
    lost.begin(encoder, images, is_new=False, rank=0)
    assert lost.distance(encoder) is None and "is not there" in caplog.text
