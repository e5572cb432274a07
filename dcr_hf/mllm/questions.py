"""Questions about images, and what a prediction records of each beside the reply."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from dcr_hf.evaluation.readers.image_sets import ImageSet

LETTER = "Answer with the option's letter from the given choices directly."
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        item: its name in replies and predictions, unique in its set.
        image: the image's index in the set's images.
        prompt: the user's exact words about the image.
        facts: what a prediction holds beside the reply: `group` (a pair or a group of four that is scored together),
            `tag` (its kind), `question` (for people), `answer`, and what the benchmark's judge and score need.
    """

    item: str
    image: int
    prompt: str
    facts: dict


@dataclass(frozen=True)
class QuestionSet(ImageSet):
    """A benchmark's `questions` in its order, those of a group in sequence."""

    questions: Sequence[Question] = field(default_factory=tuple)


def shortened(text: str, length: int = 80) -> str:
    """A text shortened for one line of a table."""
    text = " ".join(text.split()) or "(nothing)"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def warn_of_another_size(title: str, source: str, found: int, published: int) -> None:
    """Warn that scores on part of a benchmark cannot be compared with published ones."""
    if found != published:
        logger.warning(
            "%s: %s has %d rows, published are %d: scores are not those of the benchmark.",
            title,
            source,
            found,
            published,
        )
