"""Folders and pictures as users have them: which files are data, which formats are decoded.

Every listing of a user's folder enters here, so that training, evaluation and fingerprints see the same.
"""

from dcr_hf.files.listing import files_below, is_debris
from dcr_hf.files.paths import check_writable, user_path
from dcr_hf.files.pixels import FORMATS, PixelRangeError, eight_bits
from dcr_hf.files.text import read_table, read_text

__all__ = [
    "FORMATS",
    "PixelRangeError",
    "check_writable",
    "eight_bits",
    "files_below",
    "is_debris",
    "read_table",
    "read_text",
    "user_path",
]
