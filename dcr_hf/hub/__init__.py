"""The Hugging Face hub: every request to it is made here, pinned to a commit, patient, and never twice.

A user gives a folder or an id, 'owner/name' or 'owner/name@revision'. What asks the hub enters here; what models and
data sets are does not. Models are always loaded from a folder, so that no library asks the hub on its own.
"""

from dcr_hf.hub.files import SIDE_FILES, check_weights, fetch, file_names, local_folder, model_folder
from dcr_hf.hub.fingerprint import fingerprint_of_files, fingerprint_of_model
from dcr_hf.hub.patience import PATIENCE_VARIABLE, add_patience_option, passes, patiently, set_patience
from dcr_hf.hub.pins import Pin, adopt, declare, find_pin, forget_pins, hub_id, pin, prefer, preferred
from dcr_hf.hub.remote import RemoteFile, address, open_file
from dcr_hf.hub.together import from_one_process
from dcr_hf.hub.weights import Weights, choose_weights

__all__ = [
    "PATIENCE_VARIABLE",
    "SIDE_FILES",
    "Pin",
    "RemoteFile",
    "Weights",
    "add_patience_option",
    "address",
    "adopt",
    "check_weights",
    "choose_weights",
    "declare",
    "fetch",
    "file_names",
    "find_pin",
    "fingerprint_of_files",
    "fingerprint_of_model",
    "forget_pins",
    "from_one_process",
    "hub_id",
    "local_folder",
    "model_folder",
    "open_file",
    "passes",
    "patiently",
    "pin",
    "prefer",
    "preferred",
    "set_patience",
]
