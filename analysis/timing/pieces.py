"""The pieces of the CPU engine that can be switched off one by one, each by what replaces it.

`off(name)` is a context in which the piece is gone and everything else stays, so that what it
brings can be measured (`python -m benchmarks.ablation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from attention.execution import cache, chunks

Replacement = tuple[Any, str, Any]  # an object, the name of its attribute, the other value
WHOLE = 1 << 60  # bytes: everything in one part


def _unshared(*, repeated: bool) -> AbstractContextManager[None]:
    return nullcontext()


PIECES: dict[str, list[Replacement]] = {
    "parts of images": [(chunks, "IMAGES", WHOLE)],
    "parts of groups and rows": [(chunks, "WIDEST", WHOLE)],
    "tables made once": [(cache, "shared", _unshared)],
}
IN = {  # where a piece is at work
    "parts of images": ("infer",), "parts of groups and rows": ("infer",),
    "tables made once": ("infer", "train"),
}  # fmt: skip


def off(name: str) -> AbstractContextManager[Any]:
    """A context without the piece of this name; for "" one in which nothing is missing."""
    return _replaced(PIECES[name]) if name else nullcontext()


@contextmanager
def _replaced(replacements: list[Replacement]) -> Iterator[None]:
    with ExitStack() as stack:
        for place, name, value in replacements:
            stack.callback(_setter(place, name, getattr(place, name)))
            setattr(place, name, value)
        yield


def _setter(place: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(place, name, value)
