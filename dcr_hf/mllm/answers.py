"""A free-form reply -> the option that it names, or None, which counts as wrong and is listed."""

import re
from collections.abc import Mapping, Sequence

# What stands before words that are denied.
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|rather than|instead of)|n't)\s+"
    r"(?:(?:the|an?|option|answer|choice|be|really)\s+)*$",
    re.IGNORECASE,
)


def first_word(reply: str, words: Sequence[str]) -> str | None:
    """The first of `words` that occurs in the reply as a separate word, in any case; NaturalBench's rule."""
    found = re.search(rf"\b({'|'.join(map(re.escape, words))})\b", reply, re.IGNORECASE)
    return next(word for word in words if word.lower() == found[1].lower()) if found else None


def named_option(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a reply names, as a person would read it.

    In this order: the reply is a letter ("B", "(b)."); it says what its answer, option or choice is ("Option B is
    right", "the answer is **B**"); a letter in brackets, or before a mark or the end ("it is (b)", "B) Closed", "I
    would say B"); the words of an option. Only one option alone is named: not in "(A) or (B)" or "(a) Open (b)
    Closed". What is denied is not named ("(b), not (a)", "not open"). A letter that is not an option names none.
    Words of a longer option are not also those of a shorter one in it ("left" in "upper left").

    Args:
        options: words by letter.
    """
    reply = re.sub(r"[*_`]+", "", reply).strip()
    letters = "".join(options)
    sure = letters.replace("a", "").replace("A", "")  # "a" is a word too
    alone = rf"\(?([{letters}])\b\)?"
    if re.search(rf"(?<!\w){alone}\s*(?:or|and|/|&)\s*{alone}(?!\w)", reply, re.IGNORECASE):
        return None
    stated = r"\b(?:answer|option|choice)\b"
    for pattern in (
        rf"^\W*{alone}\W*$",
        rf"\b(?:option|choice)\s+{alone}|{stated}(?:\s+is)?\s*:?\s*(?:{alone}\s*(?:[.:),;!]|$)|\(?([{sure}])\b)",
        rf"(?<!\w)(?:{alone}(?=\s*[.:),;!?]|$)|\(([{letters}])\))",
    ):
        if named := _named(pattern, reply):
            return next((letter for letter in options if {letter.lower()} == named), None)
    return _named_by_words(reply, options)


def _named(pattern: str, reply: str) -> set[str]:
    """The letters that are found and not denied."""
    found = re.finditer(pattern, reply, re.IGNORECASE)
    return {match[match.lastindex or 0].lower() for match in found if not _DENIED.search(reply[: match.start()])}


def _named_by_words(reply: str, options: Mapping[str, str]) -> str | None:
    rest, named = reply, set()
    for letter, words in sorted(options.items(), key=lambda option: -len(option[1])):
        bare = words.strip(" .")
        if not bare:
            continue
        for match in re.finditer(rf"(?<!\w){re.escape(bare)}(?!\w)", rest, re.IGNORECASE):
            if not _DENIED.search(rest[: match.start()]):
                named.add(letter)
        rest = re.sub(rf"(?<!\w){re.escape(bare)}(?!\w)", " | ", rest, flags=re.IGNORECASE)
    return named.pop() if len(named) == 1 else None
