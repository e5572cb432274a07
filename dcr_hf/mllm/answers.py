"""A free-form reply -> the option that it names, or None, which counts as wrong and is listed."""

import re
from collections.abc import Mapping, Sequence


def first_word(reply: str, words: Sequence[str]) -> str | None:
    """The first of `words` that occurs in the reply as a separate word, in any case; NaturalBench's rule."""
    found = re.search(rf"\b({'|'.join(map(re.escape, words))})\b", reply, re.IGNORECASE)
    return next(word for word in words if word.lower() == found[1].lower()) if found else None


def named_option(reply: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a reply names.

    In this order: the reply is a letter ("B", "(b).", "B) Closed"); a letter in brackets ("it is (b)"); a letter after
    "answer", "option" or "choice" that ends its clause ("the answer is B."); the one option whose words occur in the
    reply. A reply with the words of several options names none, unless they are part of a longer option that occurs
    ("left" in "upper left"). A letter that is not an option names none.

    Args:
        options: words by letter.
    """
    letters = "".join(options)
    for pattern in (
        rf"\W*([{letters}])\W*$",
        rf"\W*([{letters}])[.:),]",
        rf".*?\(([{letters}])\)",
        rf".*?\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*([{letters}])\s*(?:[.:),;]|$)",
    ):
        if found := re.match(pattern, reply.strip(), re.IGNORECASE | re.DOTALL):
            return next(letter for letter in options if letter.lower() == found[1].lower())
    return _named_by_words(reply, options)


def _named_by_words(reply: str, options: Mapping[str, str]) -> str | None:
    rest, named = reply, []
    for letter, words in sorted(options.items(), key=lambda option: -len(option[1])):
        bare = words.strip(" .")
        if not bare:
            continue
        rest, count = re.subn(rf"(?<!\w){re.escape(bare)}(?!\w)", " | ", rest, flags=re.IGNORECASE)
        if count:
            named.append(letter)
    return named[0] if len(named) == 1 else None
