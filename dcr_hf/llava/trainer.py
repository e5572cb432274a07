"""LlavaTrainer: Hugging Face's Trainer with LLaVA's loss, order of examples and learning rates."""

import json
from collections import Counter
from pathlib import Path

from transformers import TrainerCallback

from dcr_hf.llava.config import LlavaTraining
from dcr_hf.llava.conversations import IGNORED
from dcr_hf.llava.examples import Examples, LengthGroups, RandomOrder, collate
from dcr_hf.llava.model import TrainedLlava
from dcr_hf.training.resumable import ResumableTrainer, set_learning_rate

_SKIPPED = "skipped.json"


class _NextEpoch(TrainerCallback):
    """Sets the epoch of the order of examples: transformers does not, after a resume on several devices."""

    def __init__(self, order: RandomOrder):
        self.order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.order.set_epoch(int(state.epoch))


class LlavaTrainer(ResumableTrainer):
    """Trains what requires a gradient in a LLaVA.

    Args:
        model: freeze what is not to be trained, see `TrainedLlava`.
        args: the stage's own.
        examples: to train on.
        projector_learning_rate: where the projector has one of its own.
        kwargs: passed on to `ResumableTrainer`.
    """

    def __init__(
        self,
        model: TrainedLlava,
        args: LlavaTraining,
        examples: Examples,
        projector_learning_rate: float | None = None,
        **kwargs,
    ):
        collator = collate(examples.processor.tokenizer.pad_token_id)
        super().__init__(model=model, args=args, train_dataset=examples, data_collator=collator, **kwargs)
        self.examples = examples
        self.projector_learning_rate = projector_learning_rate

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean over a batch's learned tokens, as in LLaVA: not over those of all devices' batches together."""
        inputs = {name: value for name, value in inputs.items() if name != "skipped"}
        outputs = model(**inputs)
        learned = (inputs["labels"] != IGNORED).sum().float()
        self.observe(outputs.loss, {"learned_tokens": learned})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def batch_log(self, inputs: dict) -> tuple[int, list]:
        images = inputs["pixel_values"]
        return 0 if images is None else len(images), inputs["skipped"]

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.projector_learning_rate is not None:
            projector = self.accelerator.unwrap_model(self.model).projector
            ids = {id(parameter) for parameter in projector.parameters()}
            set_learning_rate(optimizer, ids, self.projector_learning_rate)
        return optimizer

    def _get_train_sampler(self, train_dataset=None) -> RandomOrder:
        kind = LengthGroups if self.args.train_sampling_strategy == "group_by_length" else RandomOrder
        order = kind(
            self.examples.lengths,
            self.args.per_device_train_batch_size,
            batches=self.args.world_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        self.add_callback(_NextEpoch(order))
        return order

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if isinstance(resume_from_checkpoint, str) and self.args.process_index == 0:
            before = json.loads((Path(resume_from_checkpoint) / _SKIPPED).read_text(encoding="utf-8"))
            self.metrics_log.skipped = Counter(before)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_extra(self, checkpoint: Path) -> None:
        """What was left out so far."""
        skipped = self.metrics_log.skipped_by_all()
        if self.args.should_save:
            (checkpoint / _SKIPPED).write_text(json.dumps(skipped) + "\n", encoding="utf-8")
