"""What stage 2 trained -> an encoder that `from_pretrained` loads: merged, checked, saved, described, uploaded.

Whatever writes or describes an exported folder enters here; training does not.
"""

from dcr_hf.export.merge import (
    ExportError,
    copy_side_files,
    export_encoder,
    export_folders,
    export_run,
    export_target,
)
from dcr_hf.export.run_facts import RunFacts
from dcr_hf.export.upload import Upload, check_upload, push_to_hub, upload_command

__all__ = [
    "ExportError",
    "RunFacts",
    "Upload",
    "check_upload",
    "copy_side_files",
    "export_encoder",
    "export_folders",
    "export_run",
    "export_target",
    "push_to_hub",
    "upload_command",
]
