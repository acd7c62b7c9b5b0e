"""Rows to text: aligned table, Markdown, csv, JSON.  A row is a dict; a column may be absent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

FORMATS = ("table", "md", "csv", "json")


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Every key, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def number(value: Any) -> str:
    """Whole numbers with thousands separated, everything else as text, nothing as nothing."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def grid(rows: Sequence[dict[str, Any]], style: str) -> str:
    """For reading: style table or md.  Empty columns are left out."""
    from tabulate import tabulate

    columns = [c for c in columns_of(rows) if any(row.get(c) not in (None, "") for row in rows)]
    cells = [[_safe(number(row.get(c)), style) for c in columns] for row in rows]
    numeric = [
        all(isinstance(row.get(c), (int, float, type(None))) or row.get(c) == "" for row in rows)
        for c in columns
    ]
    align = ["right" if right else "left" for right in numeric]
    look = "github" if style == "md" else "simple"
    return tabulate(cells, columns, tablefmt=look, colalign=align, disable_numparse=True)


def _safe(text: str, style: str) -> str:
    """A cell stays a cell: no line breaks, no control characters, no Markdown column marks."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text.replace("|", "\\|") if style == "md" else text


def csv(rows: Sequence[dict[str, Any]]) -> str:
    """Through pandas; whole numbers stay whole beside missing ones."""
    import pandas as pd

    frame = pd.DataFrame([[row.get(c) for c in columns_of(rows)] for row in rows], dtype=object)
    return frame.to_csv(index=False, header=columns_of(rows)).rstrip("\n")


def as_json(data: Any) -> str:
    return json.dumps(data, indent=1)
