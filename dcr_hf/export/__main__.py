"""Export what a run in OUT trained, or one of its checkpoints, also during the run; upload it.

python -m dcr_hf.export OUT [--checkpoint checkpoint-500] [--push_to_hub --hub_model_id me/encoder]
"""

import argparse
from pathlib import Path

from dcr_hf.errors import OneLineParser, UserError, exit_on_user_error
from dcr_hf.export import (
    RunFacts,
    Upload,
    check_upload,
    export_folders,
    export_run,
    export_target,
    push_to_hub,
    upload_command,
)
from dcr_hf.hub import add_patience_option, set_patience


def main() -> None:
    parser = OneLineParser(prog="python -m dcr_hf.export", description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", help="the --output_dir of the run")
    parser.add_argument(
        "--checkpoint", help="such as checkpoint-500, of stage 2, instead of its result: into OUT/checkpoint-500"
    )
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace an earlier export")
    parser.add_argument("--push_to_hub", action="store_true", help="upload both exported folders")
    parser.add_argument("--hub_model_id", help="where to: owner/name; default: the folder's name, in your account")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make new repositories private")
    parser.add_argument("--hub_token", help="default: the one of hf auth login, or HF_TOKEN")
    add_patience_option(parser)
    options = parser.parse_args()
    with exit_on_user_error():
        set_patience(options.hub_patience)
        _export(options)


def _export(options: argparse.Namespace) -> None:
    upload = Upload(options.hub_model_id, options.hub_private_repo, options.hub_token)
    if not options.push_to_hub and (upload.model_id or upload.private or upload.token):
        raise UserError("--hub_model_id, --hub_private_repo and --hub_token are for --push_to_hub: give it too.")
    out, checkpoint = options.output_dir, options.checkpoint
    folders = export_folders(RunFacts.read(Path(out)).encoder, export_target(out, checkpoint))
    if options.push_to_hub:
        check_upload(upload, folders)
    is_there = all(folder.is_dir() for folder in folders)
    if not (options.push_to_hub and is_there and not options.overwrite_output_dir):
        folders = export_run(out, checkpoint, options.overwrite_output_dir)
    for folder in folders:
        print(folder)
    if options.push_to_hub:
        for repository in push_to_hub(folders, upload, upload_command(out, upload, checkpoint)):
            print(f"uploaded: {repository}")


if __name__ == "__main__":
    main()
