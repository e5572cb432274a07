"""A mistake of the user's ends with one line and code 2, an interruption with 75, anything else with its traceback."""

import os
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from dcr_hf.errors import (
    AlreadyExistsError,
    Interrupted,
    LockedError,
    NotFoundError,
    UserError,
    WriteError,
    as_user_error,
    exit_on_user_error,
)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UserError, ValueError),
        (NotFoundError, FileNotFoundError),
        (AlreadyExistsError, FileExistsError),
        (LockedError, BlockingIOError),
        (WriteError, OSError),
    ],
)
def test_each_is_also_the_built_in_one_and_ends_with_one_line(kind, builtin, capsys):
    assert issubclass(kind, builtin) and issubclass(kind, UserError)
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise kind("--encoder 'x': not there. Give a folder.")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: --encoder 'x': not there. Give a folder.")


def test_an_interruption_ends_with_75(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise Interrupted("stopped by a signal at step 3.")
    assert stopped.value.code == 75
    assert capsys.readouterr().err.endswith("stopped by a signal at step 3. Run the same command again to resume.\n")


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, RuntimeError, ImportError, ZeroDivisionError])
def test_anything_else_keeps_its_traceback(kind):
    with pytest.raises(kind), exit_on_user_error():
        raise kind("deep inside")


def test_a_librarys_error_names_what_was_read():
    with (
        pytest.raises(UserError, match=r"--config run\.yaml: line 3") as raised,
        as_user_error("--config run.yaml", SyntaxError),
    ):
        raise SyntaxError("line 3")
    assert isinstance(raised.value.__cause__, SyntaxError)
    with pytest.raises(NotFoundError), as_user_error("weights", OSError):
        raise FileNotFoundError("no such file")
    with pytest.raises(KeyError), as_user_error("weights", OSError):
        raise KeyError("not one of the kinds that bad input raises")


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("image 0001.jpg: truncated.")


def test_from_a_worker_it_is_still_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("error: image 0001.jpg: truncated.") and "Traceback" not in lines[-1]


def test_a_terminal_that_lacks_a_sign_gets_a_question_mark():
    program = "from dcr_hf.errors import exit_on_user_error\nwith exit_on_user_error(): print('\\xb1 0.3 \\u2248')"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode("latin-1")) == (0, "± 0.3 ?\n")


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise KeyboardInterrupt
    assert stopped.value.code == 130 and "stopped by Ctrl-C" in capsys.readouterr().err
