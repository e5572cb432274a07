"""The variants of training that are compared, and the paper's claims about them."""

from typing import NamedTuple

ORIGINAL = "original"  # the untrained encoder
# The options in which each variant differs from the common ones.
VARIANTS: dict[str, dict[str, object]] = {
    ORIGINAL: {},
    "reconstruction": {"objective": "reconstruction"},
    # It does not use the denoiser, so it has no stage 1: the projector would get no gradient.
    "contrastive": {"objective": "contrastive", "stage": "2"},
    "joint": {"objective": "joint", "log_gradient_conflict_every": 10},
    "end_to_end": {"stage": "end_to_end"},
    "dcr": {},
    "dcr_residual": {"contrast_space": "residual"},
    "dcr_after_reconstruction": {"stage1_objective": "reconstruction"},
    "dcr_residual_after_reconstruction": {"stage1_objective": "reconstruction", "contrast_space": "residual"},
    "stage1_short": {"stage1_max_steps": 50},
    "stage1_long": {"stage1_max_steps": 800},
    "stage1_slow": {"stage1_learning_rate": 1e-4},
    "stage2_slow": {"stage2_learning_rate": 2e-5},
    "stage2_fast": {"stage2_learning_rate": 5e-4},
    "temperature_0.02": {"temperature": 0.02},
    "temperature_0.5": {"temperature": 0.5},
}
# The paper's comparison.
COMPARED = ("original", "reconstruction", "contrastive", "joint", "end_to_end", "dcr", "dcr_residual")
# Options of every run unless the command line overrides them: the paper's batch and temperature, and stage lengths for
# the miniature.
COMMON: dict[str, object] = {
    "stage1_max_steps": 200,
    "stage1_learning_rate": 1e-3,
    "stage2_max_steps": 200,
    "stage2_learning_rate": 1e-4,
    "gradient_accumulation_steps": 1,
    # README's numbers were measured with these three.
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "lora_bias": "none",
    "dataloader_num_workers": 1,
    "save_steps": 100,
    "save_total_limit": 1,
    "logging_steps": 10,
    "report_to": "none",
}

P_ABILITY, D_ABILITY = "P-Ability", "D-Ability"


class Claim(NamedTuple):
    """The claim that `better` has more of an ability than `worse`."""

    statement: str
    ability: str
    better: str
    worse: str


CLAIMS = (
    Claim("reconstruction alone sees more details", P_ABILITY, "reconstruction", ORIGINAL),
    Claim("reconstruction alone harms categories", D_ABILITY, ORIGINAL, "reconstruction"),
    Claim("DCR sees more details", P_ABILITY, "dcr", ORIGINAL),
    Claim("DCR separates categories better", D_ABILITY, "dcr", ORIGINAL),
    Claim("DCR sees more details than reconstruction", P_ABILITY, "dcr", "reconstruction"),
    Claim("DCR separates categories better than reconstruction", D_ABILITY, "dcr", "reconstruction"),
    Claim("DCR sees more details than the naive sum", P_ABILITY, "dcr", "joint"),
    Claim("DCR separates categories better than the naive sum", D_ABILITY, "dcr", "joint"),
    Claim("two stages see more details than one", P_ABILITY, "dcr", "end_to_end"),
    Claim("two stages separate categories better than one", D_ABILITY, "dcr", "end_to_end"),
)
