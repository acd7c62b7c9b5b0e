"""Masks, relative indices and log steps, made once in a forward and shared by its blocks.

They depend on the size of the map (and masks on the position's parameters), so nothing is kept
from one forward to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

LARGEST = 3 << 20  # bytes up to which the mask of one module is kept for its next part

Made = TypeVar("Made")


class _Tables(NamedTuple):
    made: dict[Hashable, Any]
    repeated: bool


_tables: ContextVar[_Tables | None] = ContextVar("tables", default=None)


@contextmanager
def shared(*, repeated: bool) -> Iterator[None]:
    """Inside, `cached` makes a table once.

    repeated: every module is called again, with other images and the same parameters.
    """
    if _tables.get() is not None:
        yield
        return
    token = _tables.set(_Tables({}, repeated))
    try:
        yield
    finally:
        _tables.reset(token)


def cached(key: Hashable, make: Callable[[], Made], *, owner: object = None) -> Made:
    """`make()`, or what it gave for this key before in the same forward.

    owner: the module whose parameters the table is made from; nobody else shares it, so that it
    is kept only where the owner is called again, and only if it is small.
    """
    tables = None if torch.compiler.is_compiling() else _tables.get()
    if tables is None or (owner is not None and not tables.repeated):
        return make()
    key = id(owner), key
    if key in tables.made:
        known: Made = tables.made[key]
        return known
    answer = make()
    if owner is None or not isinstance(answer, Tensor) or answer.nbytes <= LARGEST:
        tables.made[key] = answer
    return answer
