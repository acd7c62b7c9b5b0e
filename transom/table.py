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


def grid(rows: Sequence[Row], style: str) -> str:
    """An aligned table in style table, md or latex (booktabs), without empty columns."""
    from tabulate import tabulate

    columns = [c for c in columns_of(rows) if any(row.get(c) not in (None, "") for row in rows)]
    cells = [[cell(row.get(c), style) for c in columns] for row in rows]
    align = ["right" if _numeric(rows, c) else "left" for c in columns]
    tablefmt = {"md": "github", "latex": "latex_booktabs"}.get(style, "simple")
    heads = [cell(c, style) for c in columns]
    return tabulate(cells, heads, tablefmt=tablefmt, colalign=align, disable_numparse=True)


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
    import pandas as pd

    columns = columns_of(rows)
    cells = [[_neutral(row.get(c)) for c in columns] for row in rows]
    heads = [_neutral(c) for c in columns]
    text = pd.DataFrame(cells, dtype=object).to_csv(index=False, header=heads, lineterminator="\n")
    return text.rstrip("\n")


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


def render(rows: Sequence[Row], style: str, *, title: str = "", note: str = "") -> str:
    """Rows as text.

    Args:
        rows: dicts; a column that a row lacks is empty.
        style: one of `REPORT_FORMATS`.
        title: of an HTML page.
        note: text below the table, the key "convention" of JSON; csv has none.

    Returns:
        The text; JSON is ``{"rows": rows}``.

    Example:
        >>> from transom import table
        >>> print(table.render([{"mixer": "pale", "macs": 1234567}], "table"))
        mixer         macs
        -------  ---------
        pale     1,234,567
    """
    if style == "json":
        return as_json({**({"convention": note} if note else {}), "rows": list(rows)})
    if style == "csv":
        return csv(rows)
    if style == "html":
        return _html(rows, title, note)
    text = grid(rows, style)
    if not note or style == "latex":
        return text + (f"\n% {plain(note)}" if note else "")
    return f"{text}\n\n" + "\n".join(cell(line, style) for line in note.splitlines())
