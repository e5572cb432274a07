"""Options of a run that do not go together, or need what is not installed; refused before anything is loaded."""

import dataclasses

from dcr_hf.config import DCRConfig, Recipe
from dcr_hf.errors import UserError
from dcr_hf.objectives import OBJECTIVES
from dcr_hf.training.plan import StagePlan, needs_projector

# Options that only some objectives read.
_READ_BY = {
    "dcr": (
        "num_negatives",
        "detach_negatives",
        "gather_conditions",
        "contrast_space",
        "anchor_weight",
        "negative_weighting",
    ),
    "joint": ("lambda_rec", "lambda_con"),
}

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DCRConfig)}


def check_objectives(recipe: Recipe, args: DCRConfig, plans: list[StagePlan]) -> None:
    """Refuse an objective that cannot train what its stage trains, and options that no stage's objective reads.

    Raises:
        UserError: names the option and what to give instead.
    """
    for option, name in (("objective", args.objective), ("stage1_objective", recipe.stage1_objective)):
        if name is not None and name not in OBJECTIVES:
            raise UserError(f"--{option} {name!r} is unknown; there are {', '.join(OBJECTIVES)}.")
    if recipe.stage1_objective and recipe.stage not in ("1", "all"):
        raise UserError(
            f"--stage1_objective is for stage 1, which --stage {recipe.stage} leaves out. Leave one of them out."
        )
    if args.projector_learning_rate is not None and recipe.stage != "end_to_end":
        raise UserError(
            f"--projector_learning_rate is for --stage end_to_end; --stage {recipe.stage} trains the projector at "
            "--stage1_learning_rate, or not."
        )
    _check_condition(recipe, args)
    if args.keep_weight and recipe.stage == "1":
        raise UserError("--keep_weight guards the encoder, which --stage 1 does not train. Leave it out.")
    for plan in plans:
        if plan.trains_projector:
            _check_projector_is_trained(plan)
    _check_gradient_conflict(args, plans)
    _check_options_are_read(args, {plan.args.objective for plan in plans})


def _check_gradient_conflict(args: DCRConfig, plans: list[StagePlan]) -> None:
    if args.log_gradient_conflict_every and not any(plan.args.log_gradient_conflict_every for plan in plans):
        raise UserError(
            "--log_gradient_conflict_every compares two losses that train the same; in stage 1 only dcr has two, not "
            f"{plans[0].args.objective}. Leave it out, or train stage 2 too."
        )


def _check_options_are_read(args: DCRConfig, objectives: set[str]) -> None:
    for objective in _READ_BY.keys() - objectives:
        for option in _READ_BY[objective]:
            if getattr(args, option) != _DEFAULTS[option]:
                raise UserError(
                    f"--{option} is for --objective {objective} and would change nothing for "
                    f"{' and '.join(sorted(objectives))}. Leave it out, or choose that objective."
                )


def _check_condition(recipe: Recipe, args: DCRConfig) -> None:
    if args.condition == "cls" and args.patch_keep_ratio != _DEFAULTS["patch_keep_ratio"]:
        raise UserError(
            "--patch_keep_ratio is for --condition patches and would change nothing for --condition cls. Leave it "
            "out, or give --condition patches."
        )
    if args.condition == "patches" and not needs_projector(recipe, args):
        raise UserError(
            f"--condition patches is what the denoiser sees, and the objective {args.objective} does not use it: it "
            "would change nothing. Leave it out."
        )


def _check_projector_is_trained(plan: StagePlan) -> None:
    args = plan.args
    if not args.asks_denoiser:
        without = " with --lambda_rec 0" if args.objective == "joint" else ""
        raise UserError(
            f"{plan.name} trains the projector, and the objective {args.objective}{without} gives it no gradient. "
            "Give --stage 2, which then needs no trained projector, or --stage all with a --stage1_objective such as "
            "reconstruction."
        )
