"""Patience with the hub: what passes by itself is tried again, with growing waits, for a limited time."""

import logging
import os
import random
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from dcr_hf.errors import UnavailableError, UserError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE_VARIABLE = "DCR_HUB_PATIENCE"
"""Seconds; an environment variable, so that loader workers have it too."""
DEFAULT_PATIENCE = 300.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
# A line for each try of each worker of each rank would bury the rest of the log.
QUIET_BETWEEN_LINES = 20.0
TIMEOUT = 30.0
"""Seconds without a byte after which a request counts as failed."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}

_jitter = random.Random()  # not the global one, whose state belongs to the training
_reached = False
_last_line = -QUIET_BETWEEN_LINES


def add_patience_option(parser: ArgumentParser) -> None:
    """--hub_patience, for `set_patience`, on a command line of argparse's."""
    text = "seconds to ask a hub that does not answer"
    parser.add_argument("--hub_patience", type=float, default=DEFAULT_PATIENCE, help=text)


def set_patience(seconds: float) -> None:
    """How long this process and those that it starts keep trying.

    Raises:
        UserError: no number of seconds.
    """
    if not 0 <= seconds < float("inf"):  # also true for NaN
        raise UserError(f"--hub_patience is {seconds}; it is a number of seconds, 0 or more.")
    os.environ[PATIENCE_VARIABLE] = str(seconds)


def patience() -> float:
    """Seconds."""
    return float(os.environ.get(PATIENCE_VARIABLE, DEFAULT_PATIENCE))


def hub_was_reached() -> bool:
    """True once this process had an answer of the hub."""
    return _reached


def patiently(what: str, call: Callable[[], Result], limit_of: Callable[[Exception], float] | None = None) -> Result:
    """`call()`, again and again while its failure is one that passes, with growing waits.

    Args:
        what: what is asked for, for the log and the error: "--encoder 'owner/name'".
        call: the request. It may resume what an earlier try began.
        limit_of: seconds for which a failure is tried again, instead of `patience`.

    Raises:
        UnavailableError: it still failed after that time.
        Exception: whatever does not pass by itself, at once.
    """
    global _reached
    wait, begin = FIRST_WAIT, time.monotonic()
    while True:
        try:
            result = call()
        except Exception as error:
            if not passes(error):
                raise
            limit = patience() if limit_of is None else limit_of(error)
            left = limit - (time.monotonic() - begin)
            if left <= 0:
                raise UnavailableError(
                    f"{what}: the hub was asked for {limit:.0f} s (--hub_patience), the last time it said: "
                    f"{reason(error)}."
                ) from error
            pause = min(max(retry_after(error), wait * _jitter.uniform(0.75, 1.25)), left)
            _say(f"{what}: {reason(error)}; trying again in {pause:.0f} s, for {left:.0f} s at most (--hub_patience)")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)
        else:
            _reached = True
            return result


def passes(error: BaseException) -> bool:
    """True for an outage, a rate limit or a broken connection; false for an answer that will stay the same."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):  # the connection, not an answer
        return True
    if isinstance(error, OSError | RuntimeError) and ("Consistency check failed" in str(error) or _is_xet(error)):
        return True
    # huggingface_hub's "not in the cache, and the hub cannot be asked", datasets' own errors
    return error.__cause__ is not None and passes(error.__cause__)


def _is_xet(error: BaseException) -> bool:
    return "xet" in type(error).__module__ or "Data processing error" in str(error)


def no_connection(error: BaseException) -> bool:
    """True if nothing answered at all: refused, no such host, no route."""
    name = type(error).__name__
    found = name in ("ConnectError", "ConnectTimeout", "ConnectionRefusedError", "OfflineModeIsEnabled")
    return found or (error.__cause__ is not None and no_connection(error.__cause__))


def retry_after(error: BaseException) -> float:
    """Seconds that the hub asks to wait; 0 where it does not say."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    if value.isdigit():
        return float(value)
    return retry_after(error.__cause__) if error.__cause__ is not None else 0.0


def reason(error: BaseException) -> str:
    """What the hub or the connection said, in a few words."""
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    if not isinstance(error, HTTPError) and error.__cause__ is not None and passes(error.__cause__):
        return reason(error.__cause__)
    return " ".join(f"{type(error).__name__} {error}".split())


def _say(text: str) -> None:
    global _last_line
    now = time.monotonic()
    if now - _last_line >= QUIET_BETWEEN_LINES:
        _last_line = now
        logger.warning(text)
