"""Questions that one process of a run asks for all."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dcr_hf.errors import UnavailableError, UserError

Answer = TypeVar("Answer")


def from_one_process(ask: Callable[[], Answer]) -> Answer:
    """`ask()` of the first process, in all of them. To be called by all.

    Raises:
        UserError, UnavailableError: as the first process, on every one.
    """
    state = PartialState()
    if state.num_processes == 1:
        return ask()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = ask()
        except (UserError, UnavailableError) as error:
            answer[1] = error
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return cast(Answer, answer[0])
