"""How an option is declared: its help, its group in --help, and whether it changes the result."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dcr_hf.config.transformers_options import CHANGE_RESULT, NEUTRAL, REFUSED
from dcr_hf.errors import UserError

DATA = "what to train on"
BUDGET = "budget"
OBJECTIVE = "objective"
SPEED = "speed and memory"
CHECKPOINTS = "checkpoints and resume"
EVALUATION = "evaluation and diagnostics"
LOGGING = "logging and upload"
RELEASED = "the released code's quirks"
TRANSFORMERS = "transformers' own options"
# In the order of --help.
GROUPS = (DATA, BUDGET, OBJECTIVE, SPEED, CHECKPOINTS, EVALUATION, LOGGING, RELEASED, TRANSFORMERS)
_ANY_LENGTH = ("constant", "constant_with_warmup")


class Role(Enum):
    """What an option has to do with the result."""

    RESULT = "changes the result: a fact, recorded with each checkpoint and compared on resume"
    NEUTRAL = "does not change the result"
    STAGE = "sets an option of a stage's Trainer, which is a fact there"
    REFUSED = "has no effect here and is refused, with the name of the right option"


class Help(str):
    """An option's help text, with its group and role: said beside the field, and plain text for every parser."""

    group: str
    role: Role

    def __new__(cls, text: str, group: str, role: Role = Role.RESULT) -> "Help":
        if group not in GROUPS:
            raise ValueError(f"unknown group {group!r}; there are {', '.join(GROUPS)}.")
        help_text = super().__new__(cls, text)
        help_text.group, help_text.role = group, role
        return help_text


def option(default: Any, text: str, group: str, role: Role = Role.RESULT) -> Any:
    """A dataclass field that is a command-line option.

    Args:
        default: its default; a list is copied for each instance; MISSING where the option must be given.
        text: its help, which stands alone.
        group: one of GROUPS.
        role: what it has to do with the result.
    """
    metadata = {"help": Help(text, group, role)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option as it was declared."""

    name: str
    default: Any
    group: str
    role: Role | None
    """None: nothing says whether it changes the result."""
    instead: str = ""
    """What to give in place of one that is refused."""


def options_of(kind: type) -> Iterator[Option]:
    """Every option of a Recipe or a config: our fields by their `Help`, transformers' by `transformers_options`."""
    refused = REFUSED | getattr(kind, "SET_BY_STAGE", {})
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        help_text = field.metadata.get("help")
        group, role = TRANSFORMERS, None
        if isinstance(help_text, Help):
            group, role = help_text.group, help_text.role
        elif field.name in CHANGE_RESULT:
            role = Role.RESULT
        elif field.name in NEUTRAL:
            role = Role.NEUTRAL
        by_stage = field.name in getattr(kind, "SET_BY_STAGE", {})
        if by_stage or (role is None and field.name in refused):
            role = Role.REFUSED
        yield Option(field.name, default, group, role, refused.get(field.name, ""))


def refuse_without_effect(options: Any) -> None:
    """Refuse transformers' options that nothing here reads.

    Args:
        options: a config, as the command line gave it.

    Raises:
        UserError: names the option and the right one.
    """
    for option in options_of(type(options)):
        value = getattr(options, option.name)
        if option.role is not Role.REFUSED or value == option.default:
            continue
        if option.name == "do_eval" and options.eval_strategy != "no":  # set by transformers itself
            continue
        raise UserError(f"--{option.name} {value} has no effect here: {option.instead}.")


def facts_of(options: Any) -> dict[str, Any]:
    """The options of a Recipe or config that change the result, as JSON values.

    The number of steps is one of them only where the learning rate's schedule depends on it.
    """
    by_stage = getattr(options, "SET_BY_STAGE", {}).keys() & CHANGE_RESULT
    facts = {
        o.name: getattr(options, o.name)
        for o in options_of(type(options))
        if o.role is Role.RESULT or o.name in by_stage
    }
    if schedule_of(options) in _ANY_LENGTH:
        for name in ("max_steps", "num_train_epochs"):
            facts.pop(name, None)
    return _as_saved(facts)


def schedule_of(options: Any) -> str:
    """The name of the learning rate's schedule, as a command line has it; "" where there is none."""
    return str(getattr(options, "lr_scheduler_type", "")).rpartition(".")[2].lower()


def facts_of_stage(recipe: Any, args: Any) -> dict[str, Any]:
    """What a resume of a stage compares: `facts_of` both, the processes and their device.

    Args:
        args: the stage's own TrainingOptions. Of DeepSpeed's file it is the contents that count, not the path.
    """
    facts = facts_of(recipe) | facts_of(args) | {"world_size": args.world_size, "device": args.device.type}
    if facts.pop("deepspeed", None):
        file = args.deepspeed
        facts["deepspeed_config"] = (
            json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(file, str) else _as_saved(file)
        )
    return facts


def _as_saved(facts: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    return json.loads(json.dumps(facts, default=str))
