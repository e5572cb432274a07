"""DCRTrainer: Hugging Face's Trainer with DCR's loss; beside it the log, previews and small checkpoints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from dcr_hf.config import DCRConfig
from dcr_hf.data.augment import PositiveView
from dcr_hf.data.stream import TrainingImages, collate
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.objectives import OBJECTIVES, Batch, Diffused, Negatives, Objective, Outcome, Settings
from dcr_hf.objectives.losses import keep_distance
from dcr_hf.training.gradient_conflict import GradientConflict, conflicting_terms
from dcr_hf.training.metrics_log import gather_objects
from dcr_hf.training.moved import Moved
from dcr_hf.training.preview import LastPreview, Preview
from dcr_hf.training.resumable import ResumableTrainer, set_learning_rate


class DCRTrainer(ResumableTrainer):
    """Trains what requires a gradient in a `ConditionModel`, through a frozen denoiser.

    Args:
        model: encoder and projector, with what is not to be trained frozen (see `stages`).
        args: the stage's own.
        denoiser: moved to the training device. It is an attribute of the trainer and not part of the model, so that
            checkpoints, DDP and ZeRO do not see it.
        train_dataset: a `TrainingImages`, already this rank's share, or any data set of {"image": (3, H, W) uint8,
            "key": str, "skipped": []}.
        evaluation: scores the encoder, {name: value}; called on every rank each --eval_steps.
        facts: what a run that resumes from these checkpoints must agree on, see `checkpoints.check_resume`.
        callbacks, optimizers: as in `transformers.Trainer`.
    """

    args: DCRConfig
    remedy = "Try a lower learning rate, or --denoiser_dtype float32."

    def __init__(
        self,
        model: ConditionModel,
        args: DCRConfig,
        denoiser: FrozenDenoiser,
        train_dataset: Dataset | None = None,
        evaluation: Callable[[ImageEncoder], dict[str, float]] | None = None,
        facts: dict[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=collate,
            eval_dataset=[],  # Trainer wants one where there is something to evaluate; the evaluation has its own
            facts=facts,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.evaluation = evaluation
        self.denoiser = denoiser.to(args.device)
        self.denoiser.reset_chunk_plans()
        if args.torch_compile:
            self.denoiser.compile_unet(args.torch_compile_backend or "inductor", args.torch_compile_mode)
        self.objective: Objective = OBJECTIVES[args.objective]
        self.settings = Settings(
            temperature=args.temperature,
            negatives=Negatives(args.num_negatives, args.detach_negatives, args.gather_conditions),
            space=args.contrast_space,
            anchor_weight=args.anchor_weight,
            weight_negatives=args.negative_weighting == "similarity",
            lambda_rec=args.lambda_rec,
            lambda_con=args.lambda_con,
        )
        self.view = PositiveView(
            model.encoder.image_size,
            flips=args.view_flips,
            normalized_by=model.encoder if args.view_space == "normalized" else None,
        )
        self.moved = Moved(args.folder) if model.trains_encoder else None
        self.conflict = self._gradient_conflict(model)
        self.preview = self._preview()
        self._positions: dict[int, dict] = {}
        self._batches = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch: images and views -> embeddings and conditions -> objective -> loss, and metrics."""
        images = inputs["images"]  # (B, 3, H, W) in [0, 1]
        # A frozen encoder is its own original.
        num_originals = len(images) if self.args.asks_original and self.moved is not None else 0
        encoded = model(torch.cat([images, self.view(images)]), originals=num_originals)
        embeddings, view_embeddings = encoded.embeddings.chunk(2)  # (B, D) each
        conditions = self.denoiser.with_tokens(encoded.conditions, encoded.tokens)
        conditions, view_conditions = conditions.chunk(2)  # (B, C) each, with patches (B, 77 + M, C)
        diffuse = partial(Diffused.draw, self.denoiser, images)
        originals = embeddings.detach() if self.moved is None else encoded.originals
        batch = Batch(embeddings, view_embeddings, conditions, view_conditions, diffuse, originals)
        outcome = self.objective(self.denoiser, batch, self.settings)
        loss, metrics = outcome.loss, outcome.metrics
        if self.args.keep_weight:
            distance = keep_distance(embeddings, originals)
            loss, metrics = loss + self.args.keep_weight * distance, metrics | {"keep_distance": distance.detach()}
        self.observe(loss, metrics)
        self.observe_gradients(batch, outcome)
        return (loss, {"conditions": conditions}) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One batch, forward and backward, with a preview before it where one is due, and the data's new position."""
        if self.moved is not None and not self.moved.has_begun:
            images, rank = inputs["images"].to(self.args.device), self.args.process_index
            self.moved.begin(self._encoder, images, self.state.global_step == 0, rank)
        if self.preview is not None:
            self.preview.show(inputs["images"].to(self.args.device))
            if self.preview.is_due(self.state.global_step):
                self._draw_preview(model)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._batches += 1
        if inputs["position"] is not None:
            lane, self._positions[lane] = inputs["position"]
        return loss

    def batch_log(self, inputs: dict) -> tuple[int, list]:
        return len(inputs["images"]), inputs["skipped"]

    def observe_gradients(self, batch: Batch, outcome: Outcome) -> None:
        """Add a batch to the gradient conflict where that is due, while the graph exists; a no-op elsewhere."""
        if self._observing and self.conflict is not None and self.conflict.is_due(self.state.global_step):
            self.conflict.add(conflicting_terms(self.denoiser, batch, self.settings, outcome))

    def _gradient_conflict(self, model: ConditionModel) -> GradientConflict | None:
        if not self.args.log_gradient_conflict_every:
            return None
        conflict = GradientConflict(model, self.args.log_gradient_conflict_every, self.log)
        self.add_callback(conflict)
        return conflict

    def _preview(self) -> Preview | None:
        if not self.args.preview_steps:
            return None
        folder, writes = self.args.folder / "preview", self.args.process_index == 0
        preview = Preview(folder, self.args.preview_steps, self.denoiser, self.view, self.args.seed, writes)
        self.add_callback(LastPreview(lambda: self._draw_preview(self.model_wrapped)))
        return preview

    def get_decay_parameter_names(self, model) -> list[str]:
        """The parameters with weight decay: Trainer's choice, or all."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_optimizer(self, *args, **kwargs):
        """Trainer's, with the projector's learning rate where it has one of its own beside the encoder's."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.projector_learning_rate is not None:
            trained = self.accelerator.unwrap_model(self.model).projector.parameters()
            projector = {id(parameter) for parameter in trained}
            set_learning_rate(optimizer, projector, self.args.projector_learning_rate)
        return optimizer

    def train(self, *args, **kwargs):
        if isinstance(self.train_dataset, TrainingImages):
            self.args.ignore_data_skip = True  # the stream continues from its own state: no batch is replayed
            if self.args.process_index == 0:
                self.metrics_log.skipped.update(self.train_dataset.state.skipped)
        return super().train(*args, **kwargs)

    def counters(self) -> dict[str, int]:
        return {"unet_evaluations": self.denoiser.evaluations}

    def _draw_preview(self, model: nn.Module) -> None:
        boards = [found for found in self.callback_handler.callbacks if isinstance(found, TensorBoardCallback)]
        assert self.preview is not None
        with self.compute_loss_context_manager():
            self.preview.draw(model, self.state.global_step, boards[0].tb_writer if boards else None)

    def get_train_dataloader(self) -> DataLoader:
        """`TrainingImages` is this rank's own stream; prepared by accelerate it would be divided a second time."""
        if not isinstance(self.train_dataset, TrainingImages):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            drop_last=True,
            # A loader without its own draws from the global generator, whose state a checkpoint brings back.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Score the encoder as it stands; every rank gets the same numbers."""
        assert self.evaluation is not None  # --eval_strategy needs --eval_benchmarks, see `run.check`
        scores = self.evaluation(self._encoder)
        scores = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer would count epochs of an endless stream from the last start.
        self.state.epoch = self.state.global_step / self.state.max_steps
        moved = self.moved.distance(self._encoder) if self.moved is not None and "loss" in logs else None
        super().log(logs | ({} if moved is None else {"moved": moved}), start_time)

    @property
    def _encoder(self) -> ImageEncoder:
        return self.accelerator.unwrap_model(self.model).encoder

    def save_extra(self, checkpoint: Path) -> None:
        """Write the data's position."""
        if not isinstance(self.train_dataset, TrainingImages):
            return
        state = self.train_dataset.state.advanced(
            gather_objects(self._positions, self.args.world_size), self._batches, self.metrics_log.skipped_by_all()
        )
        if self.args.should_save:
            state.write(checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
