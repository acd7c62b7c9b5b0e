"""Cache of masks, relative indices and log steps, which the blocks of one forward share.

These tables depend on the size of the map (and masks on the parameters of the bias), so the cache
ends with the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

LARGEST = 3 << 20  # bytes up to which the mask of one module is cached for its next part

Table = TypeVar("Table")


class _Tables(NamedTuple):
    tables: dict[Hashable, Any]
    repeated: bool


_tables: ContextVar[_Tables | None] = ContextVar("tables", default=None)


@contextmanager
def shared(*, repeated: bool) -> Iterator[None]:
    """Context in which `cached` computes each table once.

    repeated: every module is called several times, with other images and equal parameters.
    """
    if _tables.get() is not None:
        yield
        return
    token = _tables.set(_Tables({}, repeated))
    try:
        yield
    finally:
        _tables.reset(token)


def cached(key: Hashable, make: Callable[[], Table], *, owner: object = None) -> Table:
    """The table `make()`, computed once for each key and owner in a forward.

    owner: the module whose parameters the table depends on.  No other module shares the table, so
    that it is cached only if the owner is called several times, and only if it is small.
    """
    cache = None if torch.compiler.is_compiling() else _tables.get()
    if cache is None or (owner is not None and not cache.repeated):
        return make()
    key = id(owner), key
    if key in cache.tables:
        found: Table = cache.tables[key]
        return found
    table = make()
    if owner is None or not isinstance(table, Tensor) or table.nbytes <= LARGEST:
        cache.tables[key] = table
    return table
