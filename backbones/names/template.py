"""Templates of names, and rules that translate a name of another repository to ours.

A rule is (their key, our name or None for a tensor that we compute, change of the layout); the
first rule that matches is applied.  {i} and {j} are numbers, {2i+1} is a number in another count,
{x} is a word and {rest} any text.  Tensors that we compute (index tables, masks) are dropped by
their names, never by default, and are not written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Size, Tensor


class Change(NamedTuple):
    """Change of a tensor's layout.

    read: (their tensor, our shape) -> our tensor; it raises IndexError or RuntimeError for another
    layout.  write: our tensor -> their tensor.
    """

    read: Callable[[Tensor, Size], Tensor]
    write: Callable[[Tensor], Tensor]


_FIELD = re.compile(r"\{(\d?)([ijk])([+-]\d)?\}|\{(x|rest)\}")
_MEANS = {"x": r"(?P<x>\w+)", "rest": r"(?P<rest>.+)"}


class Template:
    """A name with fields: `values` parses a name, `fill` formats one."""

    def __init__(self, text: str) -> None:
        self.text, pattern, at = text, "", 0
        self.numbers: dict[str, tuple[int, int]] = {}  # by letter: factor and offset
        for field in _FIELD.finditer(text):
            pattern += re.escape(text[at : field.start()])
            at = field.end()
            if letter := field[2]:
                self.numbers[letter] = int(field[1] or 1), int(field[3] or 0)
                pattern += rf"(?P<{letter}>0|[1-9]\d{{0,3}})"
            else:
                pattern += _MEANS[field[4]]
        self.pattern = re.compile(pattern + re.escape(text[at:]))

    def values(self, name: str) -> dict[str, str | int] | None:
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        fields: dict[str, str | int] = dict(match.groupdict())
        for letter, (factor, offset) in self.numbers.items():
            fields[letter], rest = divmod(int(match[letter]) - offset, factor)
            if rest or fields[letter] < 0:  # type: ignore[operator]
                return None
        return fields

    def fill(self, values: dict[str, str | int]) -> str | None:
        counted = {
            letter: factor * int(values[letter]) + offset
            for letter, (factor, offset) in self.numbers.items()
        }
        if any(number < 0 for number in counted.values()):
            return None
        fields = {**values, **counted}
        return _FIELD.sub(lambda field: str(fields[field[2] or field[4]]), self.text)


class Rule(NamedTuple):
    theirs: Template
    ours: Template | None
    change: Change | None


def rule(theirs: str, ours: str | None, change: Change | None = None) -> Rule:
    return Rule(Template(theirs), None if ours is None else Template(ours), change)


def in_blocks(start: str, *rows: tuple[str, str | None]) -> list[Rule]:
    """Rules for the tensors of every block, whose keys begin with `start`."""
    blocks = "stages.{i}.blocks.{j}."
    return [rule(start + theirs, None if ours is None else blocks + ours) for theirs, ours in rows]
