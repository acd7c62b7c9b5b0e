"""The one error of a bad request, and helpers for its text.

Plain Python: a misspelt name is answered before torch is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """A request that cannot be carried out; the text is one line with place, value and remedy.

    Args:
        message: the line.
        token: the part of the user's text that is wrong, as it was written; "" if unknown.

    Example:
        >>> import backbones
        >>> try:
        ...     backbones.parse("swin_x")
        ... except backbones.SpecError as error:
        ...     print(str(error).partition(" (")[0])
        no backbone is called 'swin_x'; did you mean 'swin_t'?
    """

    def __init__(self, message: str, token: str = "") -> None:
        super().__init__(message)
        self.token = token


LONGEST_WORD = 64  # no name is longer, and comparing longer ones takes long
LONGEST_LIST, SHOWN = 600, 12  # characters of all known names, beyond which some are shown


def one_line(text: str) -> str:
    """A user's text as part of an error: at most 80 characters, control characters escaped.

    Args:
        text: any length, any characters.

    Returns:
        One printable line.

    Example:
        >>> from transom.errors import one_line
        >>> print(one_line("pale\\n"))
        pale\\n
    """
    text = printable(text[:81])
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: object) -> str:
    """A path or an error in full as part of an error: one line, control characters escaped.

    A path is not shortened, as `one_line` does, since the user has to find the file.

    Args:
        text: any characters; of more than 900, the first and the last 400 are shown.

    Returns:
        One printable line.

    Example:
        >>> from transom.errors import printable
        >>> print(printable("runs\\n.jsonl"))
        runs\\n.jsonl
    """
    text = str(text)
    text = text if len(text) <= 900 else f"{text[:400]} ... {text[-400:]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cause_of(error: BaseException, named: bool = False) -> str:
    """What an exception says, in one line and unshortened; its class where it says nothing.

    Args:
        error: of any library.
        named: put the class before the text in any case.

    Returns:
        Text without line ends, to be cleaned by `one_line` or `printable`.

    Example:
        >>> from transom.errors import cause_of
        >>> cause_of(ValueError("no such\n  column")), cause_of(MemoryError())
        ('no such column', 'MemoryError')
    """
    text = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(text.split()) or type(error).__name__


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest name, and all that are allowed.

    Args:
        word: the unknown name.
        allowed: the known names.

    Returns:
        Text that begins with a semicolon, to be appended to a sentence.

    Example:
        >>> from transom.errors import nearest
        >>> nearest("pail", ["pale", "cross"])
        "; did you mean 'pale'? (one of: pale, cross)"
    """
    allowed = list(allowed)
    known = ", ".join(allowed)
    if len(known) > LONGEST_LIST:
        known = f"{', '.join(allowed[:SHOWN])}, ... {len(allowed)} in all"
    close = difflib.get_close_matches(word[:LONGEST_WORD], allowed, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} (one of: {known})"
