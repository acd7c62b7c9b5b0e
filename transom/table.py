"""Rows as text: aligned table, Markdown, csv, JSON, LaTeX; HTML is `transom.page`.

A row is a dict; a column may be absent.  A name cannot break out of its cell: control characters
become spaces, marks of the format are escaped, and a text that a spreadsheet would run as a
formula gets an apostrophe in front, which `read_csv` removes.  csv keeps the tabs and line ends
of a cell, JSON escapes control characters.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from transom import page
from transom.layout import (
    BAD,
    GOOD,
    Column,
    Look,
    at_the_point,
    cards_of,
    chosen,
    lines_of,
    wrapped,
)

FORMATS = ("table", "md", "csv", "json")
REPORT_FORMATS = (*FORMATS, "latex", "html")

Row = dict[str, Any]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every key, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def number(value: Any) -> str:
    """Text of a value: integers with thousands separated, floats to four digits, None as ""."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:,.4g}"
    return str(value)


def plain(text: str) -> str:
    """The text with a space for every character that is not printable, line ends included."""
    return "".join(c if c.isprintable() else " " for c in text)


_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control, half a pair, and ends of lines


def harmless(text: str) -> str:
    """Text of several lines with spaces for terminal controls, bidirectional marks and surrogates.

    Tabs, line ends, other spaces and joiners of letters stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if c not in "\n\t" and (c in _BIDI or unicodedata.category(c) in _CONTROL) else c
        for c in text
    )


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|`*[]<>"} | {"&": "&amp;"})


def cell(value: Any, style: str) -> str:
    """Text of a value as a table of this style shows it, escaped for Markdown."""
    text = plain(number(value))
    if style == "md" and not isinstance(value, (int, float)):
        return text.translate(_MARKDOWN)
    return text


class Style(str):
    """Name of a format; of a table for a terminal also its width.

    Args:
        name: one of `REPORT_FORMATS`.
        width: of the terminal in characters; None: a table is whole.
        colours: whether the best and the wrong are marked for `layout.coloured`.
    """

    width: int | None
    colours: bool

    def __new__(cls, name: str, width: int | None = None, *, colours: bool = False) -> Style:
        style = super().__new__(cls, name)
        style.width, style.colours = width, colours
        return style


WHOLE = Look()


def grid(rows: Sequence[Row], style: str, look: Look = WHOLE) -> str:
    """An aligned table in style table, md or latex (booktabs), without empty columns.

    Args:
        rows: dicts.
        style: the format; a `Style` of a table with a width makes it fit.
        look: how people read it; LaTeX keeps the keys and long texts.

    Returns:
        The text; texts of footnotes and the columns left out stand below.
    """
    keys = [c for c in columns_of(rows) if any(row.get(c) not in (None, "") for row in rows)]
    if not keys:
        return ""
    if style == "latex":
        return _tabulated([_column(rows, key, style, WHOLE) for key in keys], "latex_booktabs")
    rows, notes = _footnoted(rows, [key for key in keys if key in look.footnotes], style)
    columns = [_column(rows, key, style, look) for key in keys]
    starred = [key for key in keys if look.best_rows(rows, key)]
    if style == "md":
        return "\n".join([_tabulated(columns, "github"), *([""] if notes else []), *notes])
    width = getattr(style, "width", None)
    shown = columns
    if width is not None:
        shown = chosen(columns, look.by_importance(keys), width)
    if width is not None and len(shown) < 2 <= len(columns):
        shown = columns
        lines = cards_of(columns, width)
    else:
        marks = {
            (key, i): BAD if look.bad(key, row.get(key)) else GOOD
            for key in keys for best in [look.best_rows(rows, key)] for i, row in enumerate(rows)
            if getattr(style, "colours", False) and (i in best or look.bad(key, row.get(key)))
        }  # fmt: skip
        lines = lines_of(shown, width, marks)
    below = ["* best of its column"] if any(c.key in starred for c in shown) else []
    if any(c.key in look.footnotes for c in shown):
        below += notes
    if missing := [c.head for c in columns if c not in shown]:
        below.append(f"not shown at {width} columns: {'; '.join(missing)}; --width 0 shows all")
    if width is not None:
        below = [line for text in below for line in wrapped(text, width)]
    return "\n".join([*lines, *([""] if below else []), *below])


def _tabulated(columns: Sequence[Column], tablefmt: str) -> str:
    from tabulate import tabulate

    return tabulate(
        [list(cells) for cells in zip(*(c.cells for c in columns), strict=True)],
        [c.head for c in columns], tablefmt=tablefmt, disable_numparse=True,
        colalign=["right" if c.numeric else "left" for c in columns],
    )  # fmt: skip


def _column(rows: Sequence[Row], key: str, style: str, look: Look) -> Column:
    """A column's texts; numbers stand below each other at their points, the best has a star."""
    numeric = _numeric(rows, key)
    cells = [cell(row.get(key), style) for row in rows]
    if numeric and style == "table":
        cells = at_the_point(cells)
    if best := look.best_rows(rows, key):
        if style == "md":
            cells = [f"**{text}**" if i in best else text for i, text in enumerate(cells)]
        elif style == "table":
            cells = [_starred(text) if i in best else text + " " for i, text in enumerate(cells)]
    return Column(key, cell(look.head(key), style), tuple(cells), numeric)


def _starred(text: str) -> str:
    """A number with a star behind it, as wide as others with a space."""
    bare = text.rstrip(" ")
    return f"{bare}*{text[len(bare) :]}"


def _footnoted(
    rows: Sequence[Row], keys: Sequence[str], style: str
) -> tuple[Sequence[Row], list[str]]:
    """Rows with numbers in the place of long texts, and a line a text."""
    if not keys:
        return rows, []
    texts: dict[str, int] = {}
    found = []
    for row in rows:
        changed = dict(row)
        for key in keys:
            if text := row.get(key):
                changed[key] = f"[{texts.setdefault(str(text), len(texts) + 1)}]"
        found.append(changed)
    lines = [cell(f"[{number}] {text}", style) for text, number in texts.items()]
    return found, lines if style == "table" else [f"{line}  " for line in lines]


def _numeric(rows: Sequence[Row], column: str) -> bool:
    return all(isinstance(row.get(column), (int, float, type(None))) for row in rows)


def _neutral(value: Any) -> Any:
    """The value; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    value = harmless(value)
    folded = unicodedata.normalize("NFKC", value)  # as a spreadsheet may: full-width forms too
    lead = "".join(itertools.takewhile(lambda c: c.isspace() or not c.isprintable(), folded))
    risky = "\t" in lead or folded[len(lead) :][:1] in ("=", "+", "-", "@")
    return "'" + value if risky or value[:1] == "'" else value


def csv(rows: Sequence[Row]) -> str:
    """Rows as csv; integers stay integers beside missing values, control characters are removed."""
    import csv as writer
    import io

    columns = columns_of(rows)
    text = io.StringIO(newline="")
    lines = writer.writer(text, lineterminator="\n")
    lines.writerow(map(_neutral, columns))
    lines.writerows([_neutral(row.get(c)) for c in columns] for row in rows)
    return text.getvalue().rstrip("\n")


def read_csv(text: str) -> list[dict[str, str]]:
    """Reads what `csv` wrote, without the apostrophes that it added.

    Args:
        text: csv with a header line.

    Returns:
        A dict of text cells per row.

    Example:
        >>> from transom.table import csv, read_csv
        >>> read_csv(csv([{"mixer": "pale", "formula": "=1"}]))
        [{'mixer': 'pale', 'formula': '=1'}]
    """
    import csv as reader
    import io

    rows = list(reader.reader(io.StringIO(text, newline="")))
    real = [[cell.removeprefix("'") for cell in row] for row in rows]
    return [dict(zip(real[0], row, strict=True)) for row in real[1:]]


def as_json(data: Any) -> str:
    return json.dumps(data, indent=1)


def _html(rows: Sequence[Row], title: str, note: str) -> str:
    columns = columns_of(rows)
    heads = [(plain(c), _numeric(rows, c)) for c in columns]
    cells = [
        [("" if row.get(c) is None else plain(str(row[c])), plain(number(row.get(c))))
         for c in columns]
        for row in rows
    ]  # fmt: skip
    return page.html(heads, cells, plain(title), plain(note))


def render(
    rows: Sequence[Row], style: str, *, title: str = "", note: str = "", look: Look = WHOLE
) -> str:  # fmt: skip
    """Rows as text.

    Args:
        rows: dicts; a column that a row lacks is empty.
        style: one of `REPORT_FORMATS`.
        title: of an HTML page.
        note: text below the table, the key "convention" of JSON; csv has none.
        look: how people read it.

    Returns:
        The text; JSON is ``{"rows": rows}``.

    Example:
        >>> from transom import table
        >>> print(table.render([{"mixer": "pale", "macs": 1234567}], "table"))
        mixer       macs
        -----  ---------
        pale   1,234,567
    """
    if style == "json":
        return as_json({**({"convention": note} if note else {}), "rows": list(rows)})
    if style == "csv":
        return csv(rows)
    if style == "html":
        return _html(rows, title, note)
    text = grid(rows, style, look)
    if not note or style == "latex":
        return text + (f"\n% {plain(note)}" if note else "")
    return f"{text}\n\n" + "\n".join(cell(line, style) for line in note.splitlines())
