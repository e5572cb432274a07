"""LLaVA-1.5's two templates: which words a conversation is, and which of their tokens are learned."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

IGNORED = -100
IMAGE = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
# The same for `processor.apply_chat_template`: an image before the words of its message, `</s>` after each answer.
CHAT_TEMPLATE = (
    SYSTEM + " "
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, and whether the model learns to say it."""

    text: str
    learned: bool


def caption_pieces(caption: str) -> list[Piece]:
    """LLaVA's `plain`: the image and its caption, and not what the user asked."""
    return [Piece(IMAGE, False), Piece(caption + "\n", True)]


def conversation_pieces(questions: list[str], answers: list[str], end: str) -> list[Piece]:
    """LLaVA's `v1`, which is Vicuna's: SYSTEM USER: ... ASSISTANT: ...</s>USER: ... ASSISTANT: ...</s>

    The space before an answer belongs to its first word, as the tokenizers of Llama see it.
    """
    pieces = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        opening = f"{SYSTEM} " if number == 0 else ""
        pieces += [Piece(f"{opening}USER: {question} ASSISTANT:", False), Piece(f" {answer}{end}", True)]
    return pieces


def image_first(words: str) -> str:
    """An image stands before the words of its message, wherever it was written."""
    if IMAGE not in words:
        return words
    return f"{IMAGE}\n{words.replace(IMAGE, '').strip()}".strip()


def encode(
    pieces: list[Piece], tokenizer: PreTrainedTokenizerBase, image_token_id: int, image_tokens: int, max_length: int
) -> tuple[list[int], list[int]]:
    """(token ids, labels); labels are IGNORED but where the model learns. An image has `image_tokens` tokens.

    The text is tokenized in one piece, as for generation; a token is learned if its last character is.
    """
    text = "".join(piece.text for piece in pieces)
    learned = [piece.learned for piece in pieces for _ in piece.text]  # a character each
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, labels = [], []
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        if token == image_token_id:
            ids += [token] * image_tokens
            labels += [IGNORED] * image_tokens
        else:
            ids.append(token)
            labels.append(token if end > start and learned[end - 1] else IGNORED)
    return ids[:max_length], labels[:max_length]
