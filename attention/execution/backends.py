"""The three backends that execute a mixer's one body, and which of them is asked for.

reference  the body as it is written, on the whole batch
cpu        the same body in parts that stay in the cache; for inference
kernel     attention inside groups as one Triton kernel, on the map as it lies; for a CUDA GPU

`attention.execution.dispatch` says which of them runs where none is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attention.execution import cache, chunks
from attention.geometry.groups import Groups
from transom.errors import SpecError, nearest

if TYPE_CHECKING:
    from attention.softmax.branch import Branch

NAMES = ("auto", "reference", "cpu", "kernel")
VARIABLE = "TRANSOM_BACKEND"

Body = Callable[..., Tensor]


class Reference:
    """The body on everything at once."""

    name = "reference"

    def over_images(self, body: Body, x: Tensor, image_bytes: int) -> Tensor:
        """`body` of x, whose maps take `image_bytes` an image."""
        return body(x)

    def over_rows(self, body: Body, x: Tensor, width: int) -> Tensor:
        """`body` of x (..., c), token by token, with intermediates of `width` channels."""
        return body(x)

    def over_groups(self, body: Body, groups: Groups, *maps: Tensor, width: int) -> Tensor:
        """`body` of tokens that stand group by group, with intermediates of `width` channels.

        Args:
            body: (part, *tokens) -> (b, n, l, c); the tokens are those of the groups `part`.
            groups: the cut of the maps.
            maps: (b, h, w, c) each.

        Returns:
            (b, h, w, c).
        """
        return groups.reverse(body(slice(None), *map(groups.partition, maps)))

    def attend(
        self, branch: Branch, q: Tensor, k: Tensor, v: Tensor, groups: Groups, part: slice
    ) -> Tensor:  # fmt: skip
        """The branch's attention, of tokens as `over_groups` hands them to its body."""
        found: Tensor = branch(q, k, v, groups, part)
        return found


class _CPU(Reference):
    """The body part by part."""

    name = "cpu"

    def over_images(self, body: Body, x: Tensor, image_bytes: int) -> Tensor:
        return chunks.joined(x, chunks.image_parts(x.shape[0], image_bytes), body)

    def over_rows(self, body: Body, x: Tensor, width: int) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        parts = chunks.row_parts(rows.shape[0], width * x.element_size())
        return body(x) if len(parts) == 1 else chunks.joined(rows, parts, body).view(x.shape)

    def over_groups(self, body: Body, groups: Groups, *maps: Tensor, width: int) -> Tensor:
        tokens = [groups.partition(t) for t in maps]
        b, n, length, _ = tokens[0].shape
        group_bytes = length * width * maps[0].element_size()
        out: Tensor | None = None
        for images, part in chunks.group_parts(b, n, group_bytes):
            whole = part.stop - part.start == n
            y = body(slice(None) if whole else part, *(t[images, part] for t in tokens))
            if y.shape[:2] == (b, n):
                return groups.reverse(y)
            if out is None:
                out = y.new_empty(b, n, *y.shape[2:])
            out[images, part] = y
        assert out is not None
        return groups.reverse(out)


class _Kernel(Reference):
    """Attention on the padded map, not rolled and not partitioned: the kernel computes from the
    cut where each token lies."""

    name = "kernel"

    def over_groups(self, body: Body, groups: Groups, *maps: Tensor, width: int) -> Tensor:
        return groups.crop(body(slice(None), *map(groups.pad, maps)))

    def attend(
        self, branch: Branch, q: Tensor, k: Tensor, v: Tensor, groups: Groups, part: slice
    ) -> Tensor:  # fmt: skip
        return branch.by_kernel(q, k, v, groups)


REFERENCE, CPU, KERNEL = Reference(), _CPU(), _Kernel()
BY_NAME = {backend.name: backend for backend in (REFERENCE, CPU, KERNEL)}


# -- what is asked for -------------------------------------------------------------------------

_asked: ContextVar[str | None] = ContextVar("asked", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Context that fixes the backend of every mixer and backbone called inside.

    Args:
        name: auto (the fastest, by measurement), reference, cpu or kernel.

    Returns:
        A context manager.

    Raises:
        SpecError: for another name, when the context is entered.

    Example:
        >>> import attention, torch
        >>> mixer = attention.create("window:size=7", dim=8, heads=2).eval()
        >>> with torch.inference_mode(), attention.backend("cpu"):
        ...     attention.backend_of(mixer, torch.zeros(2, 9, 9, 8))[""].name
        'cpu'
    """
    token = _asked.set(checked(name, "backend"))
    try:
        yield
    finally:
        _asked.reset(token)


def checked(name: str, place: str) -> str:
    """The name, if there is a backend of this name.  Raises SpecError."""
    if name not in NAMES:
        raise SpecError(f"{place}: no backend {name!r}{nearest(name, NAMES)}")
    return name


def asked(own: str = "auto") -> str:
    """The name that is asked for: by the innermost `backend`, by the module (`own`), or by the
    environment variable TRANSOM_BACKEND.  Raises SpecError for a variable that names none."""
    if (name := _asked.get()) is not None:
        return name
    return own if own != "auto" else checked(os.environ.get(VARIABLE, "auto"), VARIABLE)


# -- what runs ---------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A backend and why it runs.  final: for the modules inside as well."""

    backend: Reference
    reason: str
    final: bool = True

    @property
    def name(self) -> str:
        return self.backend.name


_running: ContextVar[Choice | None] = ContextVar("running", default=None)


def chosen() -> Choice | None:
    """The choice that a surrounding stage or mixer has made for the modules inside it."""
    return None if torch.compiler.is_compiling() else _running.get()


def current() -> Reference:
    """The backend that runs here."""
    choice = chosen()
    return REFERENCE if choice is None else choice.backend


@contextmanager
def running(choice: Choice) -> Iterator[None]:
    """Inside, modules take this choice, if it is final, and share the tables of one forward."""
    token = _running.set(choice if choice.final else None)
    try:
        with cache.shared(repeated=choice.backend is CPU):
            yield
    finally:
        _running.reset(token)
