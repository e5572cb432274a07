"""Run by torchrun on two processes: a few training steps whose images and gradients each rank writes down."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from dcr_hf import DCRTrainer, FrozenDenoiser
from dcr_hf.config import DCRConfig
from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import TrainingImages
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.training.gradient_conflict import COSINE
from dcr_hf.training.stages import encoder_stage, projector_stage

JOINT = {"objective": "joint", "keep_weight": 1.0}
OPTIONS = {
    "stage1": {},
    "stage2": {},
    "joint": JOINT,
    "conflict": JOINT | {"log_gradient_conflict_every": 1, "preview_steps": 2},
}


class Recorder(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})


class RecordingTrainer(DCRTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if os.environ.get("DIE_ON_RANK") == str(self.args.process_index) and self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        trained = [p for p in model.parameters() if p.requires_grad]
        own = torch.autograd.grad(loss, trained, retain_graph=True)
        self.record["keys"].append(inputs["keys"])
        self.record["own_gradients"].append([gradient.clone() for gradient in own])
        return loss


def record_terms(trainer: DCRTrainer) -> None:
    """This rank's own gradients of both losses, as the measurement is given them."""
    add = trainer.conflict.add

    def recording(terms: dict) -> None:
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        gradients = [torch.autograd.grad(term, trained, retain_graph=True) for term in terms.values()]
        trainer.record["terms"].append([[gradient.clone() for gradient in of_term] for of_term in gradients])
        add(terms)

    trainer.conflict.add = recording


def main(encoder: str, denoiser: str, data: str, output: str, stage: str) -> None:
    args = DCRConfig(
        output_dir=f"{output}/{stage}",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=3,
        learning_rate=1e-3,
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_num_workers=0,
        max_bad_fraction=0.5,
        **OPTIONS[stage],
    )
    torch.manual_seed(0)
    frozen = FrozenDenoiser.from_pretrained(denoiser)
    model = projector_stage(ImageEncoder.from_pretrained(encoder), frozen.condition_width, seed=0)
    if stage != "stage1":
        model = encoder_stage(model.encoder, model.projector, args)
    images = TrainingImages(find_source(data), 32, 4, rank=args.process_index, world_size=args.world_size)
    recorder = Recorder()
    trainer = RecordingTrainer(model, args, frozen, train_dataset=images, callbacks=[recorder])
    trainer.record = {"keys": [], "own_gradients": [], "terms": []}
    if trainer.conflict is not None:
        record_terms(trainer)
    trainer.train()
    trainer.record |= {
        "gradients": [list(step.values()) for step in recorder.gradients],
        "weights": [p.detach().clone() for p in model.parameters() if p.requires_grad],
        "log": [line for line in trainer.state.log_history if "loss" in line],
        "conflict": [line for line in trainer.state.log_history if COSINE in line],
    }
    torch.save(trainer.record, Path(output) / f"{stage}-rank{args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
