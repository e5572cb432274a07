"""A question and its image as LLaVA-1.5 is asked: its conversation, the image padded to a square. Runs in workers."""

from PIL import Image
from transformers import BatchFeature, LlavaProcessor

# LLaVA-1.5's template (vicuna_v1). The processors on the hub leave the first two sentences out; LLaVA was trained with
# them, and its own evaluation says them.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
TEMPLATE = SYSTEM + " USER: <image>\n{} ASSISTANT:"


def pad_to_square(image: Image.Image, mean: list[float]) -> Image.Image:
    """The image in the middle of a square of the processor's mean colour (in [0, 1]), as LLaVA-1.5 was trained:
    otherwise the crop would cut off the ends of a long image."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


class Conversations:
    """Images and what the user says -> a batch for `generate`, padded on the left: replies begin at one place."""

    def __init__(self, processor: LlavaProcessor):
        self.processor = processor
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:  # masked wherever it stands
            tokenizer.pad_token = tokenizer.eos_token

    def __call__(self, images: list[Image.Image], prompts: list[str]) -> BatchFeature:
        mean = self.processor.image_processor.image_mean
        # A question that speaks of "<image>" would ask for a second one.
        words = [TEMPLATE.format(prompt.replace("<image>", "image")) for prompt in prompts]
        squares = [pad_to_square(image, mean) for image in images]
        return self.processor(images=squares, text=words, padding=True, return_tensors="pt")
