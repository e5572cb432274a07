"""The suite with the oldest versions that pyproject.toml allows, which are about those of a GPU machine's image.

    python benchmarks/gpu/lower_bounds.py out/lower_bounds [what pytest takes]

Makes a virtual environment in the folder, once, with the lowest version of each package that pyproject.toml names (uv
resolves them: pip cannot), and runs the tests in it from the repository's root. The exit code is that of the tests.
Needs a network; torch comes as its build for CUDA (3 GB) unless UV_TORCH_BACKEND=cpu is set.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWEST = ("--resolution", "lowest-direct", "--extra", "dev")


def make_environment(folder: Path) -> str:
    """The Python of an environment in `folder` with the lowest versions. One that was made to the end stays."""
    python, listed = str(folder / "bin" / "python"), str(folder / "requirements.txt")
    made = folder / "made"
    if not made.exists():
        venv.create(folder, with_pip=True)
        uv = (python, "-m", "uv", "pip")
        for command in (
            (python, "-m", "pip", "install", "--quiet", "uv"),
            (*uv, "compile", "--quiet", *LOWEST, "--output-file", listed, "pyproject.toml"),
            (*uv, "install", "--python", python, "--requirement", listed),
            (*uv, "install", "--python", python, "--no-deps", "--editable", "."),
        ):
            subprocess.run(command, check=True, cwd=ROOT)
        made.touch()
    return python


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options, rest = parser.parse_known_args(arguments)
    python = make_environment(options.folder.resolve())
    return subprocess.run([python, "-m", "pytest", *(rest or ["-n", "2"])], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
