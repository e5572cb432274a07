"""Questions and images as inputs of LLaVA-1.5: its conversation, images padded to squares. Runs in workers."""

import sys

from PIL import Image
from transformers import BatchFeature

from dcr_hf.llava.conversations import IMAGE, Piece, WordTokenizer, conversation_pieces, encode
from dcr_hf.llava.folder import LlavaFolder, processor_for


# LLaVA was trained and evaluated with system sentences that the hub's processors omit.
def _asked(prompt: str) -> list[Piece]:
    """A conversation up to its answer."""
    return conversation_pieces([f"{IMAGE}\n{prompt}"], [""], "", has_image=True)[:-1]


TEMPLATE = "".join(piece.text for piece in _asked("{}"))
TOKENIZED = "around the image"  # part of what replies depend on


class Conversations:
    """Images and prompts -> a batch for `generate`, padded on the left so that replies are aligned.

    Images are always padded to squares in the mean colour, as in LLaVA-1.5's training and own evaluation: a crop would
    cut off the ends of a long image.
    """

    def __init__(self, folder: LlavaFolder):
        tokenizer = folder.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:  # padding is masked
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.processor = processor_for(folder.tower, tokenizer, pads=True)
        self.image_tokens = folder.tower.image_tokens
        self._tokenize = WordTokenizer(tokenizer)

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> BatchFeature:
        ids = [self._ids(prompt) for prompt in prompts]
        batch = self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt")
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return BatchFeature({**batch, "pixel_values": pixels})

    def _ids(self, prompt: str) -> list[int]:
        ids, _ = encode(_asked(prompt), self._tokenize, self.processor.image_token_id, self.image_tokens, sys.maxsize)
        return ids
