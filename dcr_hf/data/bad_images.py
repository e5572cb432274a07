"""Bad training images: their counts by reason, and the limit on their share."""

from collections import Counter, deque

from dcr_hf.errors import UserError

WINDOW = 1000


class SkipWindow:
    """Sliding window of bad-image outcomes. Web data has some bad images; too many mean a mistake.

    Args:
        max_bad_fraction: largest share of bad images among the last 1,000.
        option: the command-line option that names the data.
    """

    def __init__(self, max_bad_fraction: float, option: str):
        self.max_bad_fraction = max_bad_fraction
        self.option = option
        self._last: deque[tuple[str, str] | None] = deque(maxlen=WINDOW)

    def add_usable(self) -> None:
        self._last.append(None)

    def add_bad(self, reason: str, key: str) -> None:
        """Record a skipped image.

        Raises:
            UserError: too many of the last ones were bad.
        """
        self._last.append((reason, key))
        bad = [entry for entry in self._last if entry is not None]
        if len(self._last) == WINDOW and len(bad) > self.max_bad_fraction * WINDOW:
            raise UserError(
                f"{len(bad)} of the last {WINDOW} training images cannot be used, more than --max_bad_fraction "
                f"{self.max_bad_fraction}: {describe_skipped(bad)}. Is {self.option} what you meant? Repair it, or "
                "raise --max_bad_fraction."
            )


def describe_skipped(skipped: list[tuple[str, str]], examples: int = 3) -> str:
    """Counts by reason, with examples: '12 truncated (000010004, 000010017, ...), 1 empty (000020001)'."""
    keys: dict[str, list[str]] = {}
    for reason, key in skipped:
        keys.setdefault(reason, []).append(key)
    counts = Counter(reason for reason, _ in skipped).most_common()
    return ", ".join(
        f"{count} {reason} ({', '.join(keys[reason][:examples])}{', ...' if count > examples else ''})"
        for reason, count in counts
    )
