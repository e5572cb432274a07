"""The command line, as a user sees it refuse."""

import pytest


@pytest.fixture
def refusal(capsys):
    """Calls a command and returns the one line with which it refuses its arguments, with code 2."""

    def call(main, arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        *before, line = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and ": error: " in line and not any("Traceback" in other for other in before)
        return line

    return call
