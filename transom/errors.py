"""The error that a user reads, and the words it is made of.

Plain Python: a misspelt name is answered before torch is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """A request that cannot be built: one line with the place, the value and the way out.

    token: the text that is wrong, as it was written, where it is known.
    """

    def __init__(self, message: str, token: str = "") -> None:
        super().__init__(message)
        self.token = token


LONGEST_WORD = 64  # no name is longer, and comparing longer ones takes long


def one_line(text: str) -> str:
    """Text of the user's as part of an error: short, and without control characters."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'? (a, b, c)``: the tail of every error about an unknown name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(word[:LONGEST_WORD], allowed, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} (one of: {', '.join(allowed)})"
