"""Progress bars of long work, drawn on terminals only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def bar(items: Iterable[Any] | None, unit: str, **fields: Any) -> Any:
    """Iterates over items with a progress bar on stderr.

    The bar shows the items done, their rate and the time left.  It disappears when the work is
    done; it is not drawn where stderr is no terminal.

    Args:
        items: the iterable; None where `update` is called by hand.
        unit: name of one item.
        fields: further arguments of `tqdm.tqdm`.

    Returns:
        The tqdm object, which yields the items.

    Example:
        >>> from transom.progress import bar
        >>> [row * 2 for row in bar([1, 2], unit="row")]
        [2, 4]
    """
    from tqdm import tqdm

    return tqdm(items, disable=None, leave=False, dynamic_ncols=True, unit=unit, **fields)
