"""How a program ends: 0, 2 for a mistake of the user's, 75 for a run that is incomplete and can be resumed, 130 for
Ctrl-C outside a training, which ends with a checkpoint and 75."""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from dcr_hf.errors.user import UserError

# sysexits.h calls it EX_TEMPFAIL: the same command, run again, resumes.
INCOMPLETE = 75
CTRL_C = 130  # as shells have it: 128 + SIGINT


class Interrupted(Exception):
    """Training stopped before its end, after a checkpoint."""


class UnavailableError(Exception):
    """Something outside that usually comes back, such as the hub, did not answer for as long as the user allows."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the program with one line: code 2 on a `UserError`, 75 on `Interrupted` and `UnavailableError`, 130
    on Ctrl-C. Nothing else is caught. What the terminal's encoding lacks is shown as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    program = _program()
    try:
        yield
    except Interrupted as interruption:
        print(f"{program}: {interruption} Run the same command again to resume.", file=sys.stderr)
        raise SystemExit(INCOMPLETE) from None
    except UnavailableError as error:
        print(f"{program}: {own_message(error)} Run the same command again later.", file=sys.stderr)
        raise SystemExit(INCOMPLETE) from error
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C. What was saved before is complete.", file=sys.stderr)
        raise SystemExit(CTRL_C) from None
    except UserError as error:
        print(f"{program}: error: {own_message(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def own_message(error: Exception) -> str:
    """The message as it was raised, in one line: a DataLoader puts the traceback of its worker around it."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(text.split())


def _program() -> str:
    """'openai_vitl.py', or 'python -m dcr_hf.export'."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and Path(sys.argv[0]).name == "__main__.py":
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return Path(sys.argv[0]).name
