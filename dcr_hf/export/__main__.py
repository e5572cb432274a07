"""Export what a run in OUT trained, also long after it or before its end.

python -m dcr_hf.export OUT [--checkpoint checkpoint-500]
"""

import argparse

from dcr_hf.errors import exit_on_user_error
from dcr_hf.export import export_run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dcr_hf.export", description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", help="the --output_dir of the run")
    parser.add_argument("--checkpoint", help="a checkpoint of stage 2, such as checkpoint-500, instead of its result")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier export")
    options = parser.parse_args()
    with exit_on_user_error():
        for folder in export_run(options.output_dir, options.checkpoint, options.overwrite_output_dir):
            print(folder)


if __name__ == "__main__":
    main()
