"""LLaVA-1.5's two templates: which words a conversation is, their tokens, and which of these are learned."""

import json
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

IGNORED = -100
IMAGE = "<image>"
_SPACE = "▁"  # sentencepiece's sign for it
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
# The same for `processor.apply_chat_template`: an image before the words of its message, `</s>` after each answer. The
# space after the image gives the token that LLaVA has there, see `encode`.
CHAT_TEMPLATE = (
    SYSTEM + " "
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> \n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, and whether the model learns to say it; or the image, whose text is IMAGE."""

    text: str
    learned: bool = False
    is_image: bool = False


_THE_IMAGE = Piece(IMAGE, is_image=True)


def caption_pieces(caption: str) -> list[Piece]:
    """LLaVA's `plain`: the image and its caption, and not what the user asked."""
    return [_THE_IMAGE, Piece(caption + "\n", True)]


def conversation_pieces(questions: list[str], answers: list[str], end: str, has_image: bool) -> list[Piece]:
    """LLaVA's `v1`, which is Vicuna's: SYSTEM USER: ... ASSISTANT: ...</s>USER: ... ASSISTANT: ...</s>

    The space before an answer belongs to its first word, as the tokenizers of Llama see it.

    Args:
        has_image: the first IMAGE in the questions is the image; everywhere else these are words.
    """
    pieces = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        asked = f"{SYSTEM} USER: {question} ASSISTANT:" if number == 0 else f"USER: {question} ASSISTANT:"
        before, image, after = asked.partition(IMAGE) if has_image else (asked, "", "")
        if image:
            has_image = False
            pieces += [Piece(before), _THE_IMAGE, Piece(after)]
        else:
            pieces.append(Piece(asked))
        pieces.append(Piece(f" {answer}{end}", True))
    return pieces


def image_first(words: str) -> str:
    """The image stands before the words of its message, wherever it was written."""
    if IMAGE not in words:
        return words
    return f"{IMAGE}\n{words.replace(IMAGE, '').strip()}".strip()


class WordTokenizer:
    """Texts -> ids as the language model's own tokenizer makes them, to which IMAGE is a word like any other."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != IMAGE]
        state["truncation"] = state["padding"] = None
        self._words = Tokenizer.from_str(json.dumps(state))
        opening = state["pre_tokenizer"] or {}
        self._opens_with_space = opening.get("type") == "Metaspace" and opening["prepend_scheme"] != "never"

    def __call__(self, text: str, begins: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters (start, end) of each. `begins`: with the tokens that open a text."""
        # sentencepiece opens each text with a space, this pre-tokenizer only those that have none.
        added = self._opens_with_space and text.startswith((" ", _SPACE))
        encoded = self._words.encode(_SPACE + text if added else text, add_special_tokens=begins)
        return encoded.ids, [(max(start - added, 0), max(end - added, 0)) for start, end in encoded.offsets]


def encode(
    pieces: list[Piece], tokenize: WordTokenizer, image_token_id: int, image_tokens: int, max_length: int
) -> tuple[list[int], list[int]]:
    """(token ids, labels); labels are IGNORED but where the model learns. An image has `image_tokens` tokens.

    The text before the image and the text after it are tokenized separately, as in LLaVA: a Llama's tokenizer
    begins a text with a space, so there is one more token after the image than in the text as one piece. A token is
    learned if its last character is; one without characters, if the next one is.
    """
    ids: list[int] = []
    labels: list[int] = []
    for is_image, group in groupby(pieces, lambda piece: piece.is_image):
        if is_image:
            if not ids:
                ids, _ = tokenize("", begins=True)
            ids += [image_token_id] * image_tokens
            labels += [IGNORED] * (len(ids) - len(labels))
            continue
        chunk = list(group)
        learned = [piece.learned for piece in chunk for _ in piece.text]  # a character each
        found, places = tokenize("".join(piece.text for piece in chunk), begins=not ids)
        for token, (start, end) in zip(found, places, strict=True):
            ids.append(token)
            labels.append(token if learned[end - 1 if end > start else start] else IGNORED)
    return ids[:max_length], labels[:max_length]
