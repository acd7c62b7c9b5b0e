"""Answers of functions: rows that are also a data frame, Markdown, HTML and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, overload

from transom import table
from transom.errors import SpecError, nearest, one_line
from transom.layout import Look

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
NAMED = 3  # columns that a repr names


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of an answer, in the columns that the command's JSON has.

    `len` counts the rows, iteration yields them as dicts, a column's name gives the list of its
    values and a number gives a row.  `print` shows the table as text, a notebook as HTML.

    Args:
        rows: a dict per row; a column may be absent.
        columns: names of the columns in their order; by default those of the rows.
        notes: lines below the table.
        title: heading of an HTML page.
        extra: what the command's JSON has beside its rows, by key.
        look: how people read the rows.

    Example:
        >>> from transom.answer import Table
        >>> table = Table(({"mixer": "pale", "macs": 1234567}, {"mixer": "full", "macs": 7654321}))
        >>> table, table["macs"], table[0]["mixer"]
        (Table(2 rows: mixer, macs), [1234567, 7654321], 'pale')
        >>> print(table)
        mixer       macs
        -----  ---------
        pale   1,234,567
        full   7,654,321
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    title: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    look: Look = dataclasses.field(default=table.WHOLE, compare=False)

    def __post_init__(self) -> None:
        if not self.columns:
            object.__setattr__(self, "columns", tuple(table.columns_of(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    def __getitem__(self, key: int | str) -> Row | list[Any]:
        if isinstance(key, str):
            if key not in self.columns:
                raise SpecError(f"no column {one_line(key)!r}{nearest(key, self.columns)}")
            return [row.get(key) for row in self.rows]
        try:
            return self.rows[key]
        except IndexError:
            raise SpecError(f"no row {key}: the table has {len(self)}") from None

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Returns:
            A frame with the columns in their order.  Integers and booleans stay so beside missing
            values, as Int64 and boolean.

        Example:
            >>> from transom.answer import Table
            >>> frame = Table(({"macs": 2**60 + 1}, {"macs": None})).to_frame()
            >>> frame["macs"].dtype, int(frame["macs"][0]) - 2**60
            (Int64Dtype(), 1)
        """
        import pandas as pd

        def column(values: list[Any]) -> pd.Series[Any]:
            types = {type(value) for value in values}
            nullable = {int: "Int64", bool: "boolean"}
            dtype = next((nullable[t] for t in nullable if types == {t, type(None)}), None)
            return pd.Series(values, dtype=dtype)

        return pd.DataFrame({name: column(self[name]) for name in self.columns})

    def to_markdown(self) -> str:
        """The rows as a Markdown table, then the notes.

        Returns:
            Text; names are escaped.

        Example:
            >>> from transom.answer import Table
            >>> print(Table(({"mixer": "pale", "macs": 7},)).to_markdown())
            | mixer   |   macs |
            |---------|--------|
            | pale    |      7 |
        """
        return self._text("md")

    def to_html(self) -> str:
        """The rows as a page of their own, which a click on a heading sorts.

        Returns:
            A whole HTML document; all text is escaped.

        Example:
            >>> from transom.answer import Table
            >>> Table(({"mixer": "pale"},), title="Mixers").to_html().count("<h1>Mixers</h1>")
            1
        """
        return table.render(self.rows, "html", title=self.title, note=" ".join(self.notes))

    def to_json(self) -> str:
        """The rows, and what stands beside them, as the command writes them with --format json.

        Returns:
            Text of an object with the key "rows".

        Example:
            >>> import json
            >>> from transom.answer import Table
            >>> json.loads(Table(({"mixer": "pale"},), extra={"failed": 0}).to_json())
            {'failed': 0, 'rows': [{'mixer': 'pale'}]}
        """
        return table.as_json({**self.extra, "rows": list(self.rows)})

    def _text(self, style: str) -> str:
        return table.render(self.rows, style, note="\n".join(self.notes), look=self.look)

    def __str__(self) -> str:
        return table.harmless(self._text("table"))

    def __repr__(self) -> str:
        named = ", ".join(table.plain(name) for name in self.columns[:NAMED])
        more = ", ..." if len(self.columns) > NAMED else ""
        count = f"{len(self)} row{'' if len(self) == 1 else 's'}"
        return f"{type(self).__name__}({count}: {named}{more})"

    def _repr_html_(self) -> str:
        """The table for a notebook: a fragment without style or script, all text escaped."""

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

        def text(value: Any) -> str:
            return escape(table.cell(value, "html"))

        shown = [c for c in self.columns if any(value not in (None, "") for value in self[c])]
        body = "\n".join(line("td", [text(row.get(c)) for c in shown]) for row in self.rows)
        head = line("th", [text(self.look.head(c)) for c in shown])
        notes = "".join(f"\n<p>{text(note)}</p>" for note in self.notes)
        return f"<table><thead>{head}</thead><tbody>\n{body}\n</tbody></table>{notes}"


class Tabular:
    """Base class of answers with fields of their own, whose rows are a `Table` too."""

    def table(self) -> Table:
        """The rows of the answer."""
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame."""
        return self.table().to_frame()

    def to_markdown(self) -> str:
        """The rows as a Markdown table, then the notes."""
        return self.table().to_markdown()

    def to_html(self) -> str:
        """The rows as a page of their own, which a click on a heading sorts."""
        return self.table().to_html()

    def to_json(self) -> str:
        """The answer as the command writes it with --format json."""
        return self.table().to_json()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
