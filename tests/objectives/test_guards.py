"""What keeps `dcr` from winning its contrast at any price: the anchor, and negatives that count less."""

import math

import pytest
import torch
from torch.nn import functional as F

from dcr_hf import FrozenDenoiser
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.objectives import Batch, Negatives, Settings, dcr
from dcr_hf.objectives.losses import info_nce_of_each
from dcr_hf.objectives.negatives import log_weights_by_similarity
from dcr_hf.training.stages import encoder_stage, projector_stage
from dcr_hf.training.trainer import DCRTrainer
from helpers.runs import diffused_at_random, short_run
from helpers.tiny_models import CONDITION_WIDTH

B = 5


@pytest.fixture
def denoiser(sd_folder):
    return FrozenDenoiser.from_pretrained(str(sd_folder))


@pytest.fixture
def batch(denoiser):
    generator = torch.Generator().manual_seed(2)
    conditions, views = torch.randn(2, B, CONDITION_WIDTH, generator=generator).requires_grad_()
    embeddings, originals = torch.randn(2, B, 6, generator=generator)
    diffused = diffused_at_random(denoiser, B)
    return Batch(embeddings, embeddings, conditions, views, lambda: diffused, originals)


def test_weights_by_hand():
    """Cosines to the two others: 1 and 0 for the first two images, 0 and 0 for the third; deviation sqrt(2) / 3."""
    originals = torch.tensor([[1.0, 0], [2, 0], [0, 1]])
    others = torch.tensor([[1, 2], [0, 2], [0, 1]])
    weights = log_weights_by_similarity(originals, originals, others).exp()
    alike, unlike = math.exp(-(2 / 3) / (math.sqrt(2) / 3)), math.exp((1 / 3) / (math.sqrt(2) / 3))
    row = [2 * alike / (alike + unlike), 2 * unlike / (alike + unlike)]
    torch.testing.assert_close(weights, torch.tensor([row, row, [1.0, 1.0]]))
    # Another encoder's cosines may lie elsewhere and closer together: the order and spread are what counts.
    narrow = torch.tensor([[10.0, 0, 1], [20, 0, 2], [10, 1, 1]])
    closer = log_weights_by_similarity(narrow, narrow, others)
    assert closer[0, 0] < closer[0, 1] - 1
    assert log_weights_by_similarity(torch.ones(3, 2), torch.ones(3, 2), others).exp().tolist() == [[1, 1]] * 3


def test_a_weight_is_how_often_a_negative_counts():
    positives, negatives = torch.tensor([[0.9, 0.4]]), torch.tensor([[0.3, -0.2]])
    twice = info_nce_of_each(positives, torch.tensor([[0.3, 0.3, 0.3, -0.2]]), 0.5)
    weighted = info_nce_of_each(positives, negatives, 0.5, torch.tensor([[3.0, 1.0]]).log())
    torch.testing.assert_close(weighted, twice)


def test_similar_images_push_each_other_away_less(denoiser, batch):
    """Image 1 looks like image 0 to the original encoder: its condition gets less of image 0's gradient."""
    similar = batch.originals.clone()
    similar[1] = similar[0] + 1e-3
    batch = Batch(batch.embeddings, batch.embeddings, batch.conditions, batch.view_conditions, batch.diffuse, similar)
    plain, weighted = (dcr(denoiser, batch, Settings(weight_negatives=on)) for on in (False, True))
    assert not torch.equal(plain.loss, weighted.loss)
    assert weighted.metrics["negative_weight/smallest"] < 0.7 and "negative_weight/smallest" not in plain.metrics
    some = Settings(negatives=Negatives(count=3), weight_negatives=True)
    assert dcr(denoiser, batch, some).loss.isfinite()


def test_the_anchor_adds_the_error_of_the_own_prediction(denoiser, batch):
    diffused = batch.diffuse()
    own = denoiser.predict(diffused.noisy_latents, diffused.timesteps, batch.conditions)
    error = F.mse_loss(own, diffused.target)
    plain, anchored = (dcr(denoiser, batch, Settings(anchor_weight=weight)) for weight in (0.0, 2.5))
    torch.testing.assert_close(anchored.loss, plain.loss + 2.5 * error)
    found, without, expected = (
        torch.autograd.grad(loss, batch.conditions, retain_graph=True)[0]
        for loss in (anchored.loss, plain.loss, 2.5 * error)
    )
    torch.testing.assert_close(found, without + expected, rtol=1e-3, atol=1e-6)
    assert denoiser.evaluations == B + 2 * (B * B + B)  # it costs no further evaluation


@pytest.mark.parametrize("stage", ["stage1", "stage2", "full"])
def test_trained_with_the_original_encoders_similarity(clip_folder, sd_folder, tmp_path, stage, monkeypatch):
    """Stage 1's encoder is its own original; stage 2's is what it was before training, whatever is trained."""
    encoder = ImageEncoder.from_pretrained(str(clip_folder))
    options = {"negative_weighting": "similarity", "anchor_weight": 1.0, "learning_rate": 1e-2, "max_steps": 3}
    args = short_run(tmp_path, **options, **({"lora_rank": 0} if stage == "full" else {}))
    before = ImageEncoder.from_pretrained(str(clip_folder)).eval()
    model = projector_stage(encoder, CONDITION_WIDTH, seed=0)
    if stage != "stage1":
        model = encoder_stage(encoder, model.projector, args)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = [{"image": image, "key": str(number), "skipped": []} for number, image in enumerate(pixels)]
    trainer = DCRTrainer(model, args, FrozenDenoiser.from_pretrained(str(sd_folder)), train_dataset=images)
    objective, seen = trainer.objective, []

    def record(denoiser, batch, settings):
        seen.append(batch)
        return objective(denoiser, batch, settings)

    trainer.objective = record
    compute_loss = trainer.compute_loss

    def check(model, inputs, **kwargs):
        loss = compute_loss(model, inputs, **kwargs)
        torch.testing.assert_close(seen[-1].originals, before(inputs["images"]), rtol=1e-4, atol=1e-5)
        return loss

    monkeypatch.setattr(trainer, "compute_loss", check)
    trainer.train()
    assert len(seen) == 3 and not any(batch.originals.requires_grad for batch in seen)
    moved = (seen[-1].embeddings - seen[-1].originals).abs().max()
    assert moved > 1e-3 if stage != "stage1" else moved == 0
