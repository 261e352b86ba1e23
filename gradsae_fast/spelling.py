"""What may have been meant by a name that is not known."""

from collections.abc import Sequence
from difflib import get_close_matches


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Word what was expected instead of an unknown name.

    >>> did_you_mean("activatoin", ["activation", "influence"])
    "did you mean 'activation'? known: 'activation', 'influence'"
    """
    shown, compared = 12, 10_000  # comparing spellings takes microseconds each: a million document keys would hang
    close = get_close_matches(name, known[:compared], n=3)
    listed = ", ".join(map(repr, known[:shown]))
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return (f"did you mean {' or '.join(map(repr, close))}? " if close else "") + f"known: {listed}{more}"
