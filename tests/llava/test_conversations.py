"""The two templates and their labels, token by token against conversations written out by hand."""

import pytest
import sentencepiece
from transformers import AutoTokenizer

from dcr_hf.llava.conversations import (
    CHAT_TEMPLATE,
    IGNORED,
    SYSTEM,
    WordTokenizer,
    caption_pieces,
    conversation_pieces,
    encode,
    image_first,
)
from dcr_hf.llava.tokenizer import read_tokenizer
from helpers.tiny_llava import llama_tokenizer, save_sentencepiece


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


@pytest.fixture(scope="module")
def image_token(tokenizer):
    return tokenizer.convert_tokens_to_ids("<image>")


@pytest.fixture(scope="module")
def words(tokenizer):
    return WordTokenizer(tokenizer)


def tokens_of(tokenizer, ids, labels):
    """[(token, learned?)]"""
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [(token, label != IGNORED) for token, label in zip(tokens, labels, strict=True)]


def test_a_conversation_of_two_rounds_by_hand(tokenizer, words, image_token):
    pieces = conversation_pieces(["<image>\nWhat is this?", "is"], ["this cat", "a"], "</s>", True)
    found = tokens_of(tokenizer, *encode(pieces, words, image_token, image_tokens=3, max_length=2048))
    opening = [token for token, _ in found[: -len(HAND)]]
    assert opening[0] == "<s>" and "".join(opening[1:]).replace("▁", " ") == (
        " A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    assert not any(learned for _, learned in found[: -len(HAND)])
    assert found[-len(HAND) :] == HAND


# After the system's words: each token, and whether it is learned.
HAND = [
    *[(token, False) for token in ("▁USER", ":", "▁", "<image>", "<image>", "<image>", "▁", "<0x0A>")],
    *[(token, False) for token in ("W", "h", "a", "t", "▁is", "▁this", "?", "▁ASSISTANT", ":")],
    *[(token, True) for token in ("▁this", "▁cat", "</s>")],
    *[(token, False) for token in ("U", "S", "E", "R", ":", "▁is", "▁ASSISTANT", ":")],
    *[(token, True) for token in ("▁", "a", "</s>")],
]


def test_a_caption_by_hand(tokenizer, words, image_token):
    found = tokens_of(tokenizer, *encode(caption_pieces("a cat"), words, image_token, 2, 2048))
    masked = [("<s>", False), ("<image>", False), ("<image>", False)]
    assert found == [*masked, ("▁", True), ("a", True), ("▁cat", True), ("<0x0A>", True)]


def test_a_text_without_image_has_no_image_tokens(tokenizer, words, image_token):
    ids, labels = encode(conversation_pieces(["is"], ["a"], "</s>", False), words, image_token, 5, 2048)
    assert image_token not in ids and [label for label in labels if label != IGNORED] == ids[-3:]


def test_words_of_the_template_inside_an_answer_are_learned_and_inside_a_question_not(tokenizer, words, image_token):
    pieces = conversation_pieces(["say USER: a ASSISTANT: b"], ["USER: c"], "</s>", False)
    _, labels = encode(pieces, words, image_token, 1, 2048)
    learned = tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORED])
    assert learned == ["▁USER", ":", "▁c", "</s>"]


def test_what_is_too_long_is_cut_off_with_its_labels(tokenizer, words, image_token):
    complete = encode(conversation_pieces(["is"], ["this cat"], "</s>", False), words, image_token, 1, 2048)
    cut = encode(
        conversation_pieces(["is"], ["this cat"], "</s>", False),
        words,
        image_token,
        1,
        len(complete[0]) - 2,
    )
    assert cut == (complete[0][:-2], complete[1][:-2])


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("question", ["What is this?", " is", "is\n\n  it", "is <image> <0x0A> ü", "x\n     is", "▁a"])
def test_ids_are_those_of_llavas_own_code(tmp_path, legacy, question):
    """Beside sentencepiece, asked as LLaVA asks it: one text after the other, with the image's id between."""
    sentences = save_sentencepiece(tmp_path, legacy)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    sentences.add_tokens(["<image>"], special_tokens=True)
    image = sentences.convert_tokens_to_ids("<image>")
    answer = "a <image> of  a cat"
    before, after = f"{SYSTEM} USER: ", f"\n{question} ASSISTANT: {answer}"
    expected = [1, *processor.encode(before), image, *processor.encode(after), 2]
    pieces = conversation_pieces([f"<image>\n{question}"], [answer], "</s>", has_image=True)
    ids, labels = encode(pieces, WordTokenizer(sentences), image, 1, 2048)
    assert ids == expected
    learned = [label for label in labels if label != IGNORED]
    assert learned == [*processor.encode(answer), 2]
    ids, labels = encode(caption_pieces(question), WordTokenizer(sentences), image, 1, 2048)
    assert ids == [1, image, *processor.encode(f"{question}\n")] and labels == [IGNORED, IGNORED, *ids[2:]]


@pytest.mark.parametrize("legacy", [True, False])
def test_transformers_own_chat_gives_the_same_ids(tmp_path, legacy):
    sentences = save_sentencepiece(tmp_path, legacy)
    sentences.add_tokens(["<image>"], special_tokens=True)
    image = sentences.convert_tokens_to_ids("<image>")
    said = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    talk = [{"role": "user", "content": said}, {"role": "assistant", "content": "a cat"}]
    asked = sentences.apply_chat_template(talk, chat_template=CHAT_TEMPLATE, return_dict=True)["input_ids"]
    asked = [1, *asked]  # a processor's begins with <s>
    pieces = conversation_pieces(["<image>\nWhat is this?"], ["a cat"], "</s>", has_image=True)
    assert encode(pieces, WordTokenizer(sentences), image, 1, 2048)[0] == asked


def test_image_is_a_word_where_there_is_none(tokenizer, words, image_token):
    pieces = conversation_pieces(["a <image> tag"], ["<image>"], "</s>", has_image=False)
    ids, labels = encode(pieces, words, image_token, 5, 2048)
    assert image_token not in ids
    learned = tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORED])
    assert learned == ["▁", *"<image>", "</s>"]


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
    pieces = conversation_pieces(["<image>\nWhat is this?", "is"], ["a cat", "..."], "</s>", True)
    said = "".join(piece.text for piece in pieces[:-1])
    assert asked == said.replace("<image>\n", "<image> \n")


def test_runs_of_spaces_are_those_of_sentencepiece(tmp_path):
    tokenizer = save_sentencepiece(tmp_path, legacy=None, spaces=16)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    words = WordTokenizer(tokenizer)
    for run in range(1, 40):
        text = f"def a():\n{' ' * run}is cat{' ' * (run // 3)}what"
        assert words(text, begins=False)[0] == processor.encode(text)


@pytest.mark.parametrize(("said", "taken"), [(None, True), (True, True), (False, False)])
def test_legacy_is_true_where_an_old_file_does_not_say(tmp_path, said, taken, caplog):
    """A space after each special token: LLaVA's transformers puts it there, unless told otherwise."""
    tokenizer = save_sentencepiece(tmp_path, said)
    assert ("does not say `legacy`" in caplog.text) == (said is None)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("is</s>USER").input_ids)
    assert tokens[tokens.index("</s>") + 1].startswith("▁") == taken
    tokenizer.save_pretrained(tmp_path / "saved")
    for copy in (read_tokenizer("saved", tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert copy("is</s>USER   a").input_ids == tokenizer("is</s>USER   a").input_ids


@pytest.mark.parametrize(("answer", "learned"), [("", ["▁", "</s>"]), ("a</s>b", ["▁", "a", "</s>", "b", "</s>"])])
def test_answers_that_llavas_mask_check_drops_are_learned(tokenizer, words, image_token, answer, learned):
    _, labels = encode(conversation_pieces(["is"], [answer], "</s>", False), words, image_token, 1, 2048)
    assert tokenizer.convert_ids_to_tokens([label for label in labels if label != IGNORED]) == learned
