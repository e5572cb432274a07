"""A question and its image as LLaVA-1.5 is asked: its conversation, the image padded to a square. Runs in workers."""

from PIL import Image
from transformers import BatchFeature

from dcr_hf.llava.conversations import IMAGE, conversation_pieces
from dcr_hf.llava.folder import LlavaFolder, processor_for

# Processors on the hub leave the system sentences out; LLaVA was trained with them, and its own evaluation says them.
TEMPLATE = conversation_pieces([f"{IMAGE}\n{{}}"], [""], "")[0].text


class Conversations:
    """Images and what the user says -> a batch for `generate`, padded on the left: replies begin at one place.

    Images are padded to squares in the mean colour whatever the folder's processor does, as in LLaVA-1.5's training
    and its own evaluation: otherwise the crop would cut off the ends of a long image.
    """

    def __init__(self, folder: LlavaFolder):
        tokenizer = folder.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:  # masked wherever it stands
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.processor = processor_for(folder.tower, tokenizer, pads=True)

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> BatchFeature:
        # A question that speaks of "<image>" would ask for a second one.
        words = [TEMPLATE.format(prompt.replace(IMAGE, "image")) for prompt in prompts]
        return self.processor(images=images, text=words, padding=True, return_tensors="pt")
