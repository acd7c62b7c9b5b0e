"""Progress bars of long work, drawn on terminals only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from transom.table import plain

Item = TypeVar("Item")
SECONDS = 0.1  # between two drawings; `say` draws at once

# The display of this process, while there are bars on it: two would draw over each other.
_displays: list[Any] = []


class Bar(Generic[Item]):
    """A progress bar on stderr: what is done, the time gone and left, and a text beside it.

    It yields its items, or is a context in which `advance` is called by hand.  It disappears when
    the work is done; it is not drawn where stderr is no terminal.  Bars inside a bar stand below
    it.  No thread draws it, since a thread would disturb what is timed.

    Args:
        items: what is done, in order.
        unit: name of one item.
        total: number of items (default: as many as there are, where that is known).

    Example:
        >>> from transom.progress import Bar
        >>> [row * 2 for row in Bar([1, 2], unit="row")]
        [2, 4]
    """

    def __init__(self, items: Iterable[Item], unit: str, total: int | None = None) -> None:
        self.items, self.unit = items, plain(unit)
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.done, self.text = 0.0, ""
        self._began = self._drawn = 0.0
        self._display: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar[Item]:
        self.done, self._began = 0.0, time.monotonic()
        if self._display is None and sys.stderr.isatty():
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        display, self._display = self._display, None
        if display is None:
            return
        if len(display.tasks) > 1:
            display.remove_task(self._task)
        else:  # which erases what it shows; without a bar, rich 13 leaves a line
            _displays.remove(display)
            display.stop()

    def __iter__(self) -> Iterator[Item]:
        with self:
            if self._display is None:
                yield from self.items
                return
            for item in self.items:
                yield item
                self.advance()

    def advance(self, amount: float = 1) -> None:
        """Adds to what is done, in items."""
        self.done += amount
        if self._display is not None and time.monotonic() - self._drawn >= SECONDS:
            self._draw()

    def say(self, text: str) -> None:
        """Sets the text beside the bar: one line, drawn as it is."""
        self.text = plain(text)
        if self._display is not None:
            self._draw()

    def _open(self) -> None:
        if not _displays:
            if (display := _display_of_stderr()) is None:
                return
            display.start()
            _displays.append(display)
        self._display = _displays[0]
        self._task = self._display.add_task("", total=self.total, **self._fields())
        self._draw()

    def _draw(self) -> None:
        self._display.update(self._task, completed=self.done, refresh=True, **self._fields())
        self._drawn = time.monotonic()

    def _fields(self) -> dict[str, str]:
        """The texts of the columns."""
        gone = time.monotonic() - self._began
        done = f"{self.done:,.0f}" if float(self.done).is_integer() else f"{self.done:,.2f}"
        clock = _clock(gone)
        if self.total and self.done:  # by the mean, which needs one item only
            left = gone * max(self.total - self.done, 0) / self.done
            clock += f", about {_clock(left)} left"
        count = done if self.total is None else f"{done}/{self.total:,}"
        return {"count": f"{self.unit} {count}", "clock": clock, "text": self.text}


def _display_of_stderr() -> Any:
    """A display of rich without bars; None on a terminal that cannot erase."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=sys.stderr)
    if not console.is_interactive:
        return None
    count, clock, text = (
        TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("count", "clock", "text")
    )
    return Progress(
        count, BarColumn(20), clock, text, console=console, auto_refresh=False, transient=True,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
