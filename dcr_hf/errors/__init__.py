"""A mistake of the user's is one of these, raised where it is detected; a command line ends with it in one line.

Exceptions of that family and how a program ends enter here. Everything else that is raised keeps its traceback.
"""

from dcr_hf.errors.exit import INCOMPLETE, Interrupted, UnavailableError, exit_on_user_error, own_message
from dcr_hf.errors.parser import DefaultsFormatter, OneLineParser
from dcr_hf.errors.user import (
    AlreadyExistsError,
    LockedError,
    NotFoundError,
    UserError,
    WriteError,
    as_user_error,
)

__all__ = [
    "INCOMPLETE",
    "AlreadyExistsError",
    "DefaultsFormatter",
    "Interrupted",
    "LockedError",
    "NotFoundError",
    "OneLineParser",
    "UnavailableError",
    "UserError",
    "WriteError",
    "as_user_error",
    "exit_on_user_error",
    "own_message",
]
