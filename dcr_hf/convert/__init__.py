"""OpenAI-format CLIP weights (a `.pt` state dict, as DIVA and un2CLIP release them) -> a CLIPModel folder.

Add other formats of released encoders here. Run it as `python -m dcr_hf.convert`.
"""

from dcr_hf.convert.openai_format import convert, convert_names
from dcr_hf.convert.state_dict import read_state_dict

__all__ = ["convert", "convert_names", "read_state_dict"]
