"""What a reply in free words chooses."""

import pytest

from dcr_hf.mllm.answers import first_word, named_option

DOORS = {"a": "Open", "b": "Closed"}


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("a", "a"),
        ("B", "b"),
        ("(b)", "b"),
        (" (B). ", "b"),
        ("b) Closed", "b"),
        ("A. Open", "a"),
        ("A: the door stands open", "a"),
        ("It is (b), not (a).", "b"),  # the first one
        ("The answer is B.", "b"),
        ("I choose option b", "b"),
        ("The correct choice: A", "a"),
        ("Open", "a"),
        ("The door is closed.", "b"),
        ("A door that is closed", "b"),  # an article is no letter
        ("The answer is a closed door", "b"),
        ("The door is half open, half closed", None),
        ("(c)", None),
        ("C", None),
        ("opened", None),  # part of a word is no word
        ("", None),
        ("I cannot tell.", None),
        ("Option B is right.", "b"),
        ("I choose B.", "b"),
        ("I would say B", "b"),
        ("The correct answer is **B**.", "b"),
        ("It's B.", "b"),
        ("**(B)** Closed", "b"),
        ("My answer: B because the handle is down", "b"),
        ("Not open", None),
        ("It is not open.", None),
        ("It isn't open, it is closed", "b"),
        ("Closed, rather than open", "b"),
        ("(a) Open (b) Closed", None),
        ("(A) or (B)", None),
        ("A or B", None),
        ("a/b", None),
        ("(a) Open (b) Closed. The answer is (b).", "b"),
        ("The answer is not A. It is B.", "b"),
        ("Option A is wrong, option B is right", None),
        ("B, since A shows an open door", "b"),
    ],
)
def test_named_option(reply, named):
    assert named_option(reply, DOORS) == named


def test_a_longer_option_is_not_also_the_shorter_one_in_it():
    options = {"A": "left", "B": "upper left", "C": "right"}
    assert named_option("In the upper left corner", options) == "B"
    assert named_option("In the left corner", options) == "A"
    assert named_option("upper left or left", options) is None


def test_words_are_taken_literally():
    assert named_option("it costs 3.5 (about)", {"A": "3.5 (about)", "B": "345 (about)"}) == "A"
    assert named_option("it costs 345 (about)", {"A": "3.5 (about)", "B": "400"}) is None
    assert named_option("nothing", {"A": "", "B": "."}) is None


@pytest.mark.parametrize(
    ("reply", "words", "named"),
    [
        ("Yes", ("Yes", "No"), "Yes"),
        ("no, yes is wrong", ("Yes", "No"), "No"),
        ("NO.", ("Yes", "No"), "No"),
        ("Nothing, yesterday", ("Yes", "No"), None),
        ("I do not know", ("Yes", "No"), None),
        ("B", ("A", "B"), "B"),
        ("It is a dog: B", ("A", "B"), "A"),  # the benchmark's own rule, articles included
        ("", ("A", "B"), None),
    ],
)
def test_first_word(reply, words, named):
    assert first_word(reply, words) == named
