"""Pieces of the CPU backend that can be switched off one by one, each with its replacement.

`off(name)` is a context without that piece alone, so that its effect can be measured
(`python -m benchmarks.ablation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from attention.execution import cache, chunks

Replacement = tuple[Any, str, Any]  # an object, the name of its attribute, the other value
UNLIMITED = 1 << 60  # bytes: no limit, one part


def _unshared(*, repeated: bool) -> AbstractContextManager[None]:
    return nullcontext()


PIECES: dict[str, list[Replacement]] = {
    "parts of images": [(chunks, "IMAGES", UNLIMITED)],
    "parts of groups and rows": [(chunks, "WIDEST", UNLIMITED)],
    "tables made once": [(cache, "shared", _unshared)],
}
USED_IN = {  # modes in which a piece is used
    "parts of images": ("infer",), "parts of groups and rows": ("infer",),
    "tables made once": ("infer", "train"),
}  # fmt: skip


def off(name: str) -> AbstractContextManager[Any]:
    """A context without the piece of this name; "" switches nothing off."""
    return _replaced(PIECES[name]) if name else nullcontext()


@contextmanager
def _replaced(replacements: list[Replacement]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, value in replacements:
            stack.callback(_setter(owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield


def _setter(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)
