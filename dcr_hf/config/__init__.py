"""What a run is asked for: every option, its default and its help.

Dataclasses of plain values and the checks that need nothing else enter here; no model, no file.
"""

from dcr_hf.config.base import TrainingOptions
from dcr_hf.config.recipe import Recipe
from dcr_hf.config.training import DCRConfig

__all__ = ["DCRConfig", "Recipe", "TrainingOptions"]
