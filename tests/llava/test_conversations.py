"""The two templates and their labels, token by token against conversations written out by hand."""

import pytest
from transformers import LlavaProcessor

from dcr_hf.llava.conversations import (
    CHAT_TEMPLATE,
    IGNORED,
    caption_pieces,
    conversation_pieces,
    encode,
    image_first,
)
from dcr_hf.llava.tower import read_tower
from helpers.tiny_llava import llama_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def image_token(tokenizer):
    return tokenizer.convert_tokens_to_ids("<image>")


def tokens_of(tokenizer, ids, labels):
    """[(token, learned?)]"""
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [(token, label != IGNORED) for token, label in zip(tokens, labels, strict=True)]


def test_a_conversation_of_two_rounds_by_hand(tokenizer, image_token):
    pieces = conversation_pieces(["<image>\nWhat is this?", "is"], ["this cat", "a"], "</s>")
    found = tokens_of(tokenizer, *encode(pieces, tokenizer, image_token, image_tokens=3, max_length=2048))
    opening = [token for token, _ in found[: -len(HAND)]]
    assert opening[0] == "<s>" and "".join(opening[1:]).replace("▁", " ") == (
        " A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    assert not any(learned for _, learned in found[: -len(HAND)])
    assert found[-len(HAND) :] == HAND


# After the system's words: each token, and whether it is learned.
HAND = [
    *[(token, False) for token in ("▁USER", ":", "▁", "<image>", "<image>", "<image>", "<0x0A>")],
    *[(token, False) for token in ("W", "h", "a", "t", "▁is", "▁this", "?", "▁ASSISTANT", ":")],
    *[(token, True) for token in ("▁this", "▁cat", "</s>")],
    *[(token, False) for token in ("U", "S", "E", "R", ":", "▁is", "▁ASSISTANT", ":")],
    *[(token, True) for token in ("▁", "a", "</s>")],
]


def test_a_caption_by_hand(tokenizer, image_token):
    found = tokens_of(tokenizer, *encode(caption_pieces("a cat"), tokenizer, image_token, 2, 2048))
    masked = [("<s>", False), ("<image>", False), ("<image>", False)]
    assert found == [*masked, ("a", True), ("▁cat", True), ("<0x0A>", True)]


def test_a_text_without_image_has_no_image_tokens(tokenizer, image_token):
    ids, labels = encode(conversation_pieces(["is"], ["a"], "</s>"), tokenizer, image_token, 5, 2048)
    assert image_token not in ids and [label for label in labels if label != IGNORED] == ids[-3:]


def test_words_of_the_template_inside_an_answer_are_learned_and_inside_a_question_not(tokenizer, image_token):
    pieces = conversation_pieces(["say USER: a ASSISTANT: b"], ["USER: c"], "</s>")
    _, labels = encode(pieces, tokenizer, image_token, 1, 2048)
    learned = tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORED])
    assert learned == ["▁USER", ":", "▁c", "</s>"]


def test_what_is_too_long_is_cut_off_with_its_labels(tokenizer, image_token):
    complete = encode(conversation_pieces(["is"], ["this cat"], "</s>"), tokenizer, image_token, 1, 2048)
    cut = encode(conversation_pieces(["is"], ["this cat"], "</s>"), tokenizer, image_token, 1, len(complete[0]) - 2)
    assert cut == (complete[0][:-2], complete[1][:-2])


def test_the_ids_are_those_that_the_processor_makes_when_the_model_is_asked(tokenizer, towers, image_token):
    from helpers.images import photographs

    tower = read_tower(str(towers["clip-l-224"]))
    processor = LlavaProcessor(
        tower.padding_processor(), tokenizer, patch_size=14, vision_feature_select_strategy="default"
    )
    processor.num_additional_image_tokens = 1
    pieces = conversation_pieces(["<image>\nWhat is this?"], ["a cat"], "</s>")
    ids, _ = encode(pieces, tokenizer, image_token, tower.image_tokens, 2048)
    asked = processor(images=photographs(1)[0], text=pieces[0].text, return_tensors="pt").input_ids[0].tolist()
    assert ids[: len(asked)] == asked and tokenizer.decode(ids[len(asked) :]).strip() == "a cat</s>"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("What?\n<image>", "<image>\nWhat?"),
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("See <image> there", "<image>\nSee  there"),
        ("<image>", "<image>"),
        (" no picture ", " no picture "),
    ],
)
def test_the_image_comes_first(said, expected):
    assert image_first(said) == expected


def test_the_chat_template_says_what_training_says(tokenizer):
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": "is"},
    ]
    asked = tokenizer.apply_chat_template(
        talk, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    pieces = conversation_pieces(["<image>\nWhat is this?", "is"], ["a cat", "..."], "</s>")
    assert asked == "".join(piece.text for piece in pieces[:-1])
