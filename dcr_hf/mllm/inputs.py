"""Questions and images as inputs of LLaVA-1.5: its conversation, images padded to squares. Runs in workers."""

from PIL import Image
from transformers import BatchFeature

from dcr_hf.llava.conversations import IMAGE, conversation_pieces
from dcr_hf.llava.folder import LlavaFolder, processor_for

# LLaVA was trained and evaluated with system sentences that the hub's processors omit.
TEMPLATE = conversation_pieces([f"{IMAGE}\n{{}}"], [""], "")[0].text


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

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> BatchFeature:
        # "<image>" in a question would ask for a second image.
        words = [TEMPLATE.format(prompt.replace(IMAGE, "image")) for prompt in prompts]
        return self.processor(images=images, text=words, padding=True, return_tensors="pt")
