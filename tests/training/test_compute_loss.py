"""`compute_loss` is the method section: a call of it alone changes nothing that is logged or saved."""

import copy

import numpy as np
import pytest
import torch

from dcr_hf import DCRTrainer, FrozenDenoiser
from dcr_hf.data.stream import collate
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.stages import encoder_stage, projector_stage
from helpers.images import photographs
from helpers.runs import short_run


@pytest.fixture
def trainer(clip_folder, sd_folder, tmp_path):
    args = short_run(tmp_path, log_gradient_conflict_every=1, preview_steps=1, keep_weight=0.1)
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    denoiser = FrozenDenoiser.from_pretrained(str(sd_folder))
    projector = projector_stage(encoder, denoiser.condition_width, seed=0).projector
    return DCRTrainer(encoder_stage(encoder, projector, args), args, denoiser)


def batch(trainer):
    size = trainer.model.encoder.image_size
    images = [torch.from_numpy(np.array(photo.resize((size, size)))) for photo in photographs(4)]
    items = [
        {
            "image": image.permute(2, 0, 1),
            "key": str(number),
            "skipped": [("empty", "7")],
            "position": (3, {"epoch": 1}),
        }
        for number, image in enumerate(images)
    ]
    return collate(items)


def saved_state(trainer):
    log = trainer.metrics_log
    return copy.deepcopy(
        (log._metrics, log._images, log.skipped, log._first_bad_step, trainer._positions, trainer._batches)
    )


def test_a_call_alone_changes_nothing_that_is_saved(trainer):
    before = saved_state(trainer)
    inputs = batch(trainer)
    for _ in range(2):
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert loss.requires_grad and outputs["conditions"].shape[0] == 4
    assert saved_state(trainer) == before
    assert not trainer.conflict._gradients and trainer.preview._images is None


def test_a_training_step_logs_each_batch_once(trainer):
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, batch(trainer))
    log = trainer.metrics_log
    assert len(log._metrics) == 1 and log._images == 4 and log.skipped == {"empty": 4}
    assert trainer._positions == {3: {"epoch": 1}} and trainer._batches == 1
    assert set(trainer.conflict._gradients) == {"view", "target"}
    assert list((trainer.args.folder / "preview").glob("step-*.png"))
    trainer.compute_loss(trainer.model, batch(trainer))
    assert len(log._metrics) == 1  # that call was not a step
