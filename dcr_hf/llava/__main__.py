"""The enhanced tower and LLaVA.

python -m dcr_hf.llava check DIR_OR_ID
python -m dcr_hf.llava swap --llava ID_OR_DIR --encoder DIR --output DIR
"""

import argparse

from dcr_hf.errors import OneLineParser, exit_on_user_error
from dcr_hf.llava.contract import check_name, check_tower
from dcr_hf.llava.swap import swap


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m dcr_hf.llava", description="The enhanced tower and LLaVA.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,swap}")
    checking = commands.add_parser("check", help="check whether LLaVA's own code can use a folder as its vision tower")
    checking.add_argument(
        "folder", metavar="DIR_OR_ID", help="CLIP or SigLIP, dual encoder or vision tower: folder or hub id"
    )
    swapping = commands.add_parser("swap", help="write a LLaVA of transformers with another vision tower")
    swapping.add_argument(
        "--llava", required=True, metavar="ID_OR_DIR", help="LlavaForConditionalGeneration to copy: hub id or folder"
    )
    swapping.add_argument(
        "--encoder", required=True, metavar="DIR", help="CLIP or SigLIP of the new tower: folder or hub id"
    )
    swapping.add_argument("--output", required=True, metavar="DIR", help="folder to write; must not exist")
    swapping.add_argument(
        "--pad",
        action="store_true",
        help="pad images to squares, as LLaVA-1.5 was trained (default: as the processor of --llava does)",
    )
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        fit = _check(options.folder) if options.command == "check" else _swap(options)
    parser.exit(0 if fit else 1)


def _check(folder: str) -> bool:
    findings = check_tower(folder)
    fit = all(finding.holds for finding in findings)
    for finding in [*findings, *(check_name(folder) if fit else [])]:
        print(f"{'yes' if finding.holds else 'NO ':<4} {finding.about:<16} {finding.message}")
    print(f"{folder}: {'fit for' if fit else 'NOT fit for'} mm_vision_tower in LLaVA-1.5's own code")
    return fit


def _swap(options: argparse.Namespace) -> bool:
    made = swap(options.llava, options.encoder, options.output, options.pad)
    print(f"{made.folder}: {made.image_tokens} tokens an image")
    if made.new_projector:
        print(
            f"The towers' widths differ, {made.widths[0]} and {made.widths[1]}: the projector is NEW and random. It "
            f"must be trained before use: accelerate launch recipes/llava15.py --llava {made.folder} (docs/llava.md)."
        )
    else:
        print("The projector was kept. It was trained with the old tower: for numbers, train again (docs/llava.md).")
    return True


if __name__ == "__main__":
    main()
