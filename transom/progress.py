"""Progress of long work, on a terminal alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def bar(items: Iterable[Any], unit: str, **fields: Any) -> Any:
    """The items, with a line on stderr that says how many are done and how long the rest takes.

    The line is gone when the work is done; nothing is written where stderr is no terminal.

    Args:
        items: what is worked on; a bar of `total=None` items may be moved by its `update`.
        unit: what one of them is called.
        fields: as tqdm takes them.

    Example:
        >>> [row * 2 for row in bar([1, 2], unit="row")]
        [2, 4]
    """
    from tqdm import tqdm

    return tqdm(items, disable=None, leave=False, unit=unit, **fields)
