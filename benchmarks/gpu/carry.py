"""Where there is a network: fetch what a bare GPU machine lacks into a folder that travels with the repository.

    python benchmarks/gpu/carry.py out/wheels [--for 3.12]

Wheels without their dependencies: the machine is taken to have torch, transformers and what those bring. Versions are
those of requirements.txt's environment, that is, of the one that runs this.
"""

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# What a machine with torch, transformers, accelerate, peft and scikit-learn does not have.
LACKING = ("diffusers", "datasets", "evaluate", "kornia", "kornia_rs", "dill", "multiprocess", "importlib_metadata")
NEWER = ("transformers", "peft")  # has older ones, which the project supports too
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--for", dest="python", default="3.12", help="Python of the GPU machine")
    parser.add_argument("--newer", action="store_true", help=f"this environment's {' and '.join(NEWER)} too")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    python = ["--python-version", options.python, "--implementation", "cp"]
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    for name in (*LACKING, *(NEWER if options.newer else ())):
        wanted = f"{name}=={version(name)}"
        subprocess.run([*fetch, *python, *platforms, "--dest", str(options.folder), wanted], check=True)
    total = 0
    for wheel in sorted(options.folder.glob("*.whl")):
        total += wheel.stat().st_size
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{total / 2**20:6.1f} MiB in all")


if __name__ == "__main__":
    main()
