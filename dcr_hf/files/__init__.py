"""Folders as users have them: which of the files in them are data.

Every listing of a user's folder enters here, so that training, evaluation and fingerprints see the same files.
"""

from dcr_hf.files.listing import files_below, is_debris

__all__ = ["files_below", "is_debris"]
