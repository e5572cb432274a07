"""The exceptions of a user's mistake. Each is also the built-in exception that a caller of the library expects."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A wrong option, file or model. The message names it, says what was found, what was expected and what to do."""


class NotFoundError(UserError, FileNotFoundError):
    """A file, folder or hub repository that is missing, or lacks a part."""


class AlreadyExistsError(UserError, FileExistsError):
    """An output that would have to be overwritten."""


class LockedError(UserError, BlockingIOError):
    """A folder that another run is using."""


class WriteError(UserError, OSError):
    """A disk that is full, a folder that cannot be written."""


@contextlib.contextmanager
def as_user_error(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions of a library that reads what the user gave into a `UserError` that says what was read.

    Args:
        what: the option and its value, such as "--config run.yaml"; stands before the library's own message.
        kinds: the exceptions that this library raises for bad input, and no wider ones.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        kind = NotFoundError if isinstance(error, FileNotFoundError) else UserError
        raise kind(f"{what}: {error}") from error
