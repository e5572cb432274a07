"""Training images: what --train_data names -> batches of crops in [0, 1], and their positive views.

Reading, decoding, cropping, shuffling, counting and augmenting belong here; models and evaluation sets do not.
"""

from dcr_hf.data.augment import PositiveView
from dcr_hf.data.dealing import Source
from dcr_hf.data.sources import find_source
from dcr_hf.data.stream import StreamState, TrainingImages, collate

__all__ = ["PositiveView", "Source", "StreamState", "TrainingImages", "collate", "find_source"]
