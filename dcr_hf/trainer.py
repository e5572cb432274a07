"""DCRTrainer: Hugging Face's Trainer with DCR's loss, a log of what is worth knowing, and small, whole checkpoints."""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback

from dcr_hf.augment import PositiveView
from dcr_hf.checkpoints import mark_whole, rotate, writing
from dcr_hf.condition import ConditionModel
from dcr_hf.config import DCRConfig
from dcr_hf.conflict import GradientConflict, conflicting_terms
from dcr_hf.data import TrainingImages, collate
from dcr_hf.denoiser import FrozenDenoiser
from dcr_hf.encoder import ImageEncoder
from dcr_hf.interruption import StopOnSignal
from dcr_hf.losses import keep_distance
from dcr_hf.objectives import OBJECTIVES, Batch, Diffused, Negatives, Settings
from dcr_hf.preview import LastPreview, Preview
from dcr_hf.steplog import StepLog, gather_objects


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; nothing was saved since."""


class SeedRanks(TrainerCallback):
    """Trainer seeds every rank alike; noise, timesteps, views and dropout must differ between them. Set when all is
    prepared: what a strategy draws while it wraps the model then changes nothing."""

    def on_train_begin(self, args, state, control, **kwargs):
        set_seed(args.seed + args.process_index)


class DCRTrainer(Trainer):
    """Trains what requires a gradient in a `ConditionModel`, through a frozen denoiser.

    Args:
        model: encoder and projector; freeze what is not to be trained (see `stages`).
        args: a `DCRConfig`.
        denoiser: moved to the training device. It is an attribute of the trainer and not part of the model, so that
            checkpoints, DDP and ZeRO do not see it.
        train_dataset: a `TrainingImages`, already this rank's share, or any data set of {"image": (3, H, W) uint8,
            "key": str, "skipped": []}.
        evaluation: scores the encoder, {name: value}; called on every rank each --eval_steps.
        facts: what a run that goes on from this one's checkpoints must agree on, see `checkpoints.resume_facts`.
        kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        model: ConditionModel,
        args: DCRConfig,
        denoiser: FrozenDenoiser,
        evaluation: Callable[[ImageEncoder], dict[str, float]] | None = None,
        facts: dict | None = None,
        **kwargs,
    ):
        # Trainer wants a data set where there is something to evaluate; the evaluation has its own.
        super().__init__(model=model, args=args, data_collator=collate, eval_dataset=[], **kwargs)
        self.evaluation = evaluation
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not self.is_fsdp_enabled:
            raise ValueError(
                f"the launch configuration asks for FSDP, but accelerate runs {self.accelerator.distributed_type} on "
                f"{args.device.type}: FSDP needs GPUs. Use accelerate_configs/ddp.yaml or cpu.yaml here."
            )
        # compute_loss returns a mean over the batch: the Trainer then averages over accumulated batches, not sums.
        self.model_accepts_loss_kwargs = False
        self.denoiser = denoiser.to(args.device)
        self.denoiser.plan_anew()
        if args.torch_compile:
            self.denoiser.compile_unet(args.torch_compile_backend, args.torch_compile_mode)
        self.objective = OBJECTIVES[args.objective]
        self.settings = Settings(
            temperature=args.temperature,
            negatives=Negatives(args.num_negatives, args.detach_negatives, args.gather_conditions),
            space=args.contrast_space,
            lambda_rec=args.lambda_rec,
            lambda_con=args.lambda_con,
        )
        self.view = PositiveView(
            model.encoder.image_size,
            flips=args.view_flips,
            normalized_by=model.encoder if args.view_space == "normalized" else None,
        )
        self.facts = facts or {}
        self.step_log = StepLog(args.world_size, args.device)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.add_callback(SeedRanks())
        self.conflict = None
        if args.log_gradient_conflict_every:
            self.conflict = GradientConflict(model, args.log_gradient_conflict_every, self.log)
            self.add_callback(self.conflict)
        self.preview = None
        if args.preview_steps:
            folder, writes = Path(args.output_dir) / "preview", args.process_index == 0
            self.preview = Preview(folder, args.preview_steps, self.denoiser, self.view, args.seed, writes)
            self.add_callback(LastPreview(lambda: self._draw_preview(self.model_wrapped)))
        self._positions: dict[int, dict] = {}
        self._batches = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One step: images and views -> embeddings and conditions -> what the objective makes of them."""
        self.step_log.begin(self.denoiser.evaluations)
        images = inputs["images"]  # (B, 3, H, W) in [0, 1]
        if self.preview is not None:
            self.preview.show(images)
            if self.preview.is_due(self.state.global_step):
                self._draw_preview(model)
        kept = len(images) if self.args.keep_weight else 0
        encoded = model(torch.cat([images, self.view(images)]), originals=kept)
        embeddings, view_embeddings = encoded.embeddings.chunk(2)  # (B, D) each
        conditions = self.denoiser.with_tokens(encoded.conditions, encoded.tokens)
        conditions, view_conditions = conditions.chunk(2)  # (B, C) each, with patches (B, 77 + M, C)
        diffuse = partial(Diffused.draw, self.denoiser, images)
        batch = Batch(embeddings, view_embeddings, conditions, view_conditions, diffuse)
        outcome = self.objective(self.denoiser, batch, self.settings)
        if self.conflict is not None and self.conflict.is_due(self.state.global_step):
            self.conflict.add(conflicting_terms(self.denoiser, batch, self.settings, outcome))
        loss, metrics = outcome.loss, outcome.metrics
        if kept:
            distance = keep_distance(embeddings, encoded.originals)
            loss, metrics = loss + self.args.keep_weight * distance, metrics | {"keep_distance": distance.detach()}
        self.step_log.record(self.state.global_step + 1, loss, metrics, len(images), inputs["skipped"])
        self._batches += 1
        if inputs["position"] is not None:
            lane, self._positions[lane] = inputs["position"]
        return (loss, {"conditions": conditions}) if return_outputs else loss

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
            self.args.ignore_data_skip = True  # the stream goes on by its own state: nothing is to be replayed
            if self.args.process_index == 0:
                self.step_log.skipped.update(self.train_dataset.state.skipped)
        with self.stop_on_signal.listening():
            return super().train(*args, **kwargs)

    def _draw_preview(self, model: nn.Module) -> None:
        boards = [found for found in self.callback_handler.callbacks if isinstance(found, TensorBoardCallback)]
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
        scores = self.evaluation(self.accelerator.unwrap_model(self.model).encoder)
        scores = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.step_log.waited += time.perf_counter() - start
        return samples

    def _prepare_input(self, data):
        """Copies from pinned memory that the host does not wait for."""
        if isinstance(data, Tensor):
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a training step's line what `StepLog` kept."""
        # Of an endless stream Trainer would count epochs from where it was started last.
        self.state.epoch = self.state.global_step / self.state.max_steps
        if "loss" in logs:
            self.stop_if_not_finite()
            logs |= self.step_log.line(self.denoiser.evaluations)
        super().log(logs, start_time)

    def stop_if_not_finite(self) -> None:
        """Raise on every rank if the loss of any rank was not finite at any step since the start.

        Raises:
            NonFiniteLossError: names the step and where the last checkpoint is.
        """
        step = self.step_log.first_bad_step()
        if step is not None:
            raise NonFiniteLossError(
                f"the loss was not finite at step {step}. Nothing was saved since; the last checkpoint, if there is "
                f"one, is in {self.args.output_dir}. Try a lower learning rate, or --denoiser_dtype float32."
            )

    # Checkpoints hold what is trained: the projector or the adapter, never the base encoder or the denoiser.

    def _save_checkpoint(self, model, trial):
        """Whole or not there: what Trainer writes, the data's position, at last the mark; old ones go after that."""
        self.stop_if_not_finite()
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # Trainer rotates too early
        try:
            with writing(checkpoint, self._checkpoint_bytes()):
                super()._save_checkpoint(model, trial)
                self._save_stream_state(checkpoint)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    mark_whole(checkpoint, self.facts)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(folder, limit, self.state.best_model_checkpoint)

    def _checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: the weights, AdamW's two moments of them, and small change."""
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return 3 * trained + 2**20

    def _save_stream_state(self, checkpoint: Path) -> None:
        if not isinstance(self.train_dataset, TrainingImages):
            return
        state = self.train_dataset.state.advanced(
            gather_objects(self._positions, self.args.world_size), self._batches, self.step_log.skipped_by_all()
        )
        if self.args.should_save:
            state.write(checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_trained(folder, state_dict)
        # As text: nobody should have to unpickle a file to read how a checkpoint was made.
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.accelerator.unwrap_model(model or self.model).load_trained(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def set_learning_rate(optimizer: torch.optim.Optimizer, parameters: set[int], learning_rate: float) -> None:
    """Give these parameters, by id, a learning rate of their own; whatever else their groups say stays."""
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in parameters]
        if own:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in parameters]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})
