"""Tables that fit a terminal: the columns that matter most, or a card for every row.

A table is given rows (dicts) and a `Look`.  Without a width it is whole; with one, no line is
longer, and what is left out is named below.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
# Marks of colour inside a text.  No name from outside can hold one: the digits are drawn anew in
# every process.
_DIGITS = os.urandom(4).hex()
GOOD, BAD, END = (f"\ue000{_DIGITS}{letter}" for letter in "gbe")
_CODES = {GOOD: "\x1b[1;32m", BAD: "\x1b[1;31m", END: "\x1b[0m"}  # bold green, bold red, as before
GAP = 2  # spaces between columns
NARROWEST = 24  # to which a column of text may be folded


@dataclass(frozen=True)
class Look:
    """How the rows of one command are read by people; csv and JSON keep keys and all columns.

    Args:
        heads: short name of a column with its unit, by key; others are called by their key.
        first: keys by importance, after the first column, which always stays; the others follow
            in their order.
        best: "most" or "least" by key: the best value of the column is marked.
        footnotes: keys of long texts, of which the table shows a number.
        bad: whether a value of a column says that something is wrong.

    Example:
        >>> from transom.layout import Look
        >>> Look(heads={"macs": "MACs, G"}).head("macs")
        'MACs, G'
    """

    heads: Mapping[str, str] = field(default_factory=dict)
    first: Sequence[str] = ()
    best: Mapping[str, str] = field(default_factory=dict)
    footnotes: Sequence[str] = ()
    bad: Callable[[str, Any], bool] = lambda key, value: False

    def head(self, key: str) -> str:
        return self.heads.get(key, key)

    def by_importance(self, keys: Sequence[str]) -> list[str]:
        """The keys, most important first; the first of them names the row."""
        rest = [key for key in self.first if key in keys[1:]]
        return [*keys[:1], *rest, *(key for key in keys[1:] if key not in rest)]

    def best_rows(self, rows: Sequence[Row], key: str) -> set[int]:
        """Numbers of the rows with the best value, where there is one and another is worse."""
        values = {i: row[key] for i, row in enumerate(rows) if _is_number(row.get(key))}
        if key not in self.best or len(set(values.values())) < 2:
            return set()
        best = (max if self.best[key] == "most" else min)(values.values())
        return {i for i, value in values.items() if value == best}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def coloured(text: str, colours: bool) -> str:
    """The text with the marks of colour carried out, or taken out."""
    for mark, code in _CODES.items():
        text = text.replace(mark, code if colours else "")
    return text


@dataclass(frozen=True)
class Column:
    """A column as text.

    key: of the rows.  head: its name.  cells: texts, one a row.  numeric: aligned at the right.
    """

    key: str
    head: str
    cells: tuple[str, ...]
    numeric: bool

    @property
    def widest(self) -> int:
        return max(map(cell_width, (self.head, *self.cells)))

    @property
    def least(self) -> int:
        """Characters that it needs: its text folded, its numbers whole."""
        if self.numeric:
            return max(max(map(cell_width, self.cells), default=0), _longest_word(self.head))
        return min(self.widest, max(NARROWEST, _longest_word(self.head)))


def _longest_word(text: str) -> int:
    return max(map(cell_width, text.split()), default=0)


def cell_width(text: str) -> int:
    """Columns of a terminal that a text takes: two for a wide character, none for a mark."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def at_the_point(cells: Sequence[str]) -> list[str]:
    """Numbers with spaces behind them, so that their points stand below each other.

    Example:
        >>> from transom.layout import at_the_point
        >>> at_the_point(["4.491", "12", ""])
        ['4.491', '12    ', '']
    """
    tails = [len(cell) - cell.find(".") if "." in cell else 0 for cell in cells]
    widest = max(tails, default=0)
    return [c + " " * (widest - tail) if c else c for c, tail in zip(cells, tails, strict=True)]


def chosen(columns: Sequence[Column], importance: Sequence[str], width: int) -> list[Column]:
    """The columns that fit, in their own order; the first of them is always there."""
    by_key = {column.key: column for column in columns}
    taken: list[str] = []
    used = -GAP
    for key in importance:
        needs = by_key[key].least + GAP
        if used + needs <= width or not taken:
            taken.append(key)
            used += needs
    return [column for column in columns if column.key in taken]


def widths(columns: Sequence[Column], width: int | None) -> list[int]:
    """Characters of every column: what it would take, or less where text can be folded."""
    found = [column.widest for column in columns]
    if width is None:
        return found
    least = [min(column.least, column.widest) for column in columns]
    spare = width - GAP * (len(columns) - 1) - sum(least)
    for i in sorted(range(len(found)), key=lambda i: found[i] - least[i]):  # small wishes first
        more = max(0, min(found[i] - least[i], spare))
        least[i] += more
        spare -= more
    return least


def folded(text: str, width: int) -> list[str]:
    """Lines of a text within a width; words are parted only where they are longer."""
    if cell_width(text) <= width:
        return [text]
    lines = textwrap.wrap(text, max(1, width), break_on_hyphens=False) or [""]
    if all(cell_width(line) <= width for line in lines):
        return lines
    parts, line = [], ""  # wide characters, which textwrap counts as one column
    for character in text:
        if cell_width(line + character) > width and line:
            parts.append(line)
            line = ""
        line += character
    return [*parts, line]


def wrapped(line: str, width: int) -> list[str]:
    """A line of text as lines within a width, indented as it is and two further."""
    if cell_width(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip(" "))][: width // 2]
    first, *rest = folded(line.strip(), max(8, width - len(indent) - 2))
    return [indent + first, *(f"{indent}  {part}" for part in rest)]


def lines_of(
    columns: Sequence[Column], width: int | None, marks: Mapping[tuple[str, int], str]
) -> list[str]:
    """The lines of a table: heads, a rule, rows.

    Args:
        columns: those to show.
        width: of the terminal in characters; None: every row is one line.
        marks: GOOD or BAD by a column's key and a row's number.
    """
    sides = widths(columns, width)

    def block(cells: Sequence[str], number: int | None) -> list[str]:
        parts = [folded(cell, side) for cell, side in zip(cells, sides, strict=True)]
        found = []
        for i in range(max(map(len, parts))):
            line = []
            for column, part, side in zip(columns, parts, sides, strict=True):
                text = part[i] if i < len(part) else ""
                space = " " * (side - cell_width(text))
                padded = space + text if column.numeric else text + space
                mark = "" if number is None else marks.get((column.key, number), "")
                line.append(f"{mark}{padded}{END}" if mark else padded)
            found.append((" " * GAP).join(line).rstrip(" "))
        return found

    count = len(columns[0].cells)
    rule = (" " * GAP).join("-" * side for side in sides)
    rows = [line for i in range(count) for line in block([c.cells[i] for c in columns], i)]
    return [*block([column.head for column in columns], None), rule, *rows]


def cards_of(columns: Sequence[Column], width: int) -> list[str]:
    """A card a row, for terminals that hold no two columns: the name, then a line a value."""
    side = min(max(cell_width(column.head) for column in columns[1:]), max(8, width // 3))
    lines = []
    for i in range(len(columns[0].cells)):
        lines += ["", *folded(columns[0].cells[i], width)]
        for column in columns[1:]:
            value = column.cells[i].strip()
            if not value:
                continue
            heads = folded(column.head, side)
            values = folded(value, max(1, width - side - 4))
            for j in range(max(len(heads), len(values))):
                head = heads[j] if j < len(heads) else ""
                text = values[j] if j < len(values) else ""
                lines.append(f"  {head}{' ' * (side - cell_width(head))}  {text}".rstrip())
    return lines[1:]
