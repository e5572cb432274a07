"""One stage of a run: what is trained, the Trainer, its checkpoints and log, and what is measured beside training.

What happens between the first step of a stage and its result on disk enters here; command lines do not.
"""

from dcr_hf.training.resumable import NonFiniteLossError, ResumableTrainer
from dcr_hf.training.trainer import DCRTrainer

__all__ = ["DCRTrainer", "NonFiniteLossError", "ResumableTrainer"]
