"""The variants of training that are compared, and the paper's claims about them."""

from typing import Any, NamedTuple

from dcr_hf.diagnostics.curve import ORIGINAL
from dcr_hf.evaluation.scoring.abilities import D_ABILITY, P_ABILITY


class Variant(NamedTuple):
    """What is trained in another way.

    Attributes:
        options: those that differ from the common ones.
        stage1: a name that variants share whose stage 1 is the same; one of them trains it. None: a stage 1 of its
            own, or none.
    """

    options: dict[str, Any] = {}
    stage1: str | None = None


_FAITHFUL = {"stage1_objective": "reconstruction"}  # its projector makes conditions that the denoiser understands
VARIANTS: dict[str, Variant] = {
    ORIGINAL: Variant(),
    "reconstruction": Variant({"objective": "reconstruction"}, "reconstruction"),
    "reconstruction_kept": Variant({"objective": "reconstruction", "keep_weight": 0.1}, "reconstruction"),
    # It does not use the denoiser, so it has no stage 1: the projector would get no gradient.
    "contrastive": Variant({"objective": "contrastive", "stage": "2"}),
    "joint": Variant(
        {"objective": "joint", "lambda_con": 0.05, "log_gradient_conflict_every": 10, **_FAITHFUL}, "reconstruction"
    ),
    "end_to_end": Variant({"stage": "end_to_end"}),
    "dcr": Variant({}, "dcr"),
    "dcr_residual": Variant({"contrast_space": "residual"}),
    "dcr_after_reconstruction": Variant(_FAITHFUL, "reconstruction"),
    "dcr_residual_after_reconstruction": Variant({"contrast_space": "residual", **_FAITHFUL}, "reconstruction"),
    "dcr_kept": Variant({"keep_weight": 3.0, **_FAITHFUL}, "reconstruction"),
    "dcr_anchored": Variant({"anchor_weight": 10.0, **_FAITHFUL}, "reconstruction"),
    "dcr_weighted": Variant({"negative_weighting": "similarity", **_FAITHFUL}, "reconstruction"),
    "stage1_short": Variant({"stage1_max_steps": 50}),
    "stage1_long": Variant({"stage1_max_steps": 800}),
    "stage1_slow": Variant({"stage1_learning_rate": 1e-4}),
    "stage2_slow": Variant({"stage2_learning_rate": 2e-5}, "dcr"),
    "stage2_fast": Variant({"stage2_learning_rate": 5e-4}, "dcr"),
    "temperature_0.02": Variant({"temperature": 0.02}),
    "temperature_0.5": Variant({"temperature": 0.5}),
}
# The paper's comparison.
COMPARED = ("original", "reconstruction", "contrastive", "joint", "end_to_end", "dcr", "dcr_residual")
# Options of every run unless the command line overrides them: the paper's batch and temperature; rates and stage
# lengths that move the miniature's encoder.
COMMON: dict[str, object] = {
    "stage1_max_steps": 600,
    "stage1_learning_rate": 1e-3,
    "stage2_max_steps": 300,
    "stage2_learning_rate": 3e-4,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 1,
    "save_steps": 50,
    "logging_steps": 10,
    "report_to": "none",
}


_RANDOM = ", random"


def control_of(variant: str) -> str:
    """The name of the encoders that were moved as far as the variant's, in random directions."""
    return f"{variant}{_RANDOM}"


def is_control(name: str) -> bool:
    return name.endswith(_RANDOM)


class Claim(NamedTuple):
    """The claim that `better` has more of an ability than `worse`."""

    statement: str
    ability: str
    better: str
    worse: str


CLAIMS = (
    Claim("reconstruction alone sees more details", P_ABILITY, "reconstruction", ORIGINAL),
    Claim("reconstruction alone harms categories", D_ABILITY, ORIGINAL, "reconstruction"),
    Claim("what reconstruction gains is learnt", P_ABILITY, "reconstruction", control_of("reconstruction")),
    Claim("DCR sees more details", P_ABILITY, "dcr", ORIGINAL),
    Claim("what DCR gains is learnt", P_ABILITY, "dcr", control_of("dcr")),
    Claim("DCR separates categories better", D_ABILITY, "dcr", ORIGINAL),
    Claim("DCR sees more details than reconstruction", P_ABILITY, "dcr", "reconstruction"),
    Claim("DCR separates categories better than reconstruction", D_ABILITY, "dcr", "reconstruction"),
    Claim("DCR sees more details than the naive sum", P_ABILITY, "dcr", "joint"),
    Claim("DCR separates categories better than the naive sum", D_ABILITY, "dcr", "joint"),
    Claim("two stages see more details than one", P_ABILITY, "dcr", "end_to_end"),
    Claim("two stages separate categories better than one", D_ABILITY, "dcr", "end_to_end"),
)
