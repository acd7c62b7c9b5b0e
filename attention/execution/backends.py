"""The three backends that execute a mixer's body, and the request for one of them.

reference  the body as it is written, on the batch at once
cpu        the body on parts of the batch that stay in the cache; for inference
kernel     attention inside groups as one Triton kernel, without a partition; for a CUDA GPU

`attention.execution.dispatch` decides which of them runs where none is asked for.
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
from attention.execution.chunks import Maps
from attention.geometry.groups import Groups
from transom.errors import SpecError, nearest

if TYPE_CHECKING:
    from attention.softmax.branch import Branch

NAMES = ("auto", "reference", "cpu", "kernel")
VARIABLE = "TRANSOM_BACKEND"

Body = Callable[..., Tensor]


class Reference:
    """The reference backend: the body on the batch at once; the others override its methods."""

    name = "reference"

    def over_images(self, body: Callable[..., Maps], *maps: Tensor, image_bytes: int) -> Maps:
        """`body` of maps (b, ...), image by image; they take `image_bytes` per image."""
        return body(*maps)

    def over_rows(self, body: Body, x: Tensor, width: int) -> Tensor:
        """`body` of x (..., c), token by token, with intermediates of `width` channels."""
        return body(x)

    def over_groups(self, body: Body, groups: Groups, *maps: Tensor, width: int) -> Tensor:
        """`body` of tokens that stand group by group, with intermediates of `width` channels.

        Args:
            body: (part, *tokens) -> (b, n, l, c); the tokens are those of the groups `part`.
            groups: the partition of the maps.
            maps: (b, h, w, c) each.

        Returns:
            (b, h, w, c).
        """
        return groups.reverse(body(slice(None), *map(groups.partition, maps)))

    def attend(
        self, branch: Branch, q: Tensor, k: Tensor, v: Tensor, groups: Groups, part: slice
    ) -> Tensor:  # fmt: skip
        """The branch's attention on tokens in the layout in which `over_groups` gives them."""
        out: Tensor = branch(q, k, v, groups, part)
        return out


class _CPU(Reference):
    """The cpu backend: the body on one part after another."""

    name = "cpu"

    def over_images(self, body: Callable[..., Maps], *maps: Tensor, image_bytes: int) -> Maps:
        return chunks.joined(chunks.image_parts(maps[0].shape[0], image_bytes), body, *maps)

    def over_rows(self, body: Body, x: Tensor, width: int) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        parts = chunks.row_parts(rows.shape[0], width * x.element_size())
        return body(x) if len(parts) == 1 else chunks.joined(parts, body, rows).view(x.shape)

    def over_groups(self, body: Body, groups: Groups, *maps: Tensor, width: int) -> Tensor:
        tokens = [groups.partition(t) for t in maps]  # (b, n, l, c) each
        b, n, length, _ = tokens[0].shape
        group_bytes = length * width * maps[0].element_size()
        out: Tensor | None = None
        for images, part in chunks.group_parts(b, n, group_bytes):
            all_groups = part.stop - part.start == n
            y = body(slice(None) if all_groups else part, *(t[images, part] for t in tokens))
            if y.shape[:2] == (b, n):
                return groups.reverse(y)
            if out is None:
                out = y.new_empty(b, n, *y.shape[2:])
            out[images, part] = y
        assert out is not None
        return groups.reverse(out)


class _Kernel(Reference):
    """The kernel backend: attention on the padded map, neither rolled nor partitioned.

    The kernel computes from the integers of the partition where each token lies.
    """

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


def checked(name: str, source: str) -> str:
    """The name, if a backend has it; raises SpecError that begins with `source` if none has."""
    if name not in NAMES:
        raise SpecError(f"{source}: no backend {name!r}{nearest(name, NAMES)}")
    return name


def asked(module_backend: str = "auto") -> str:
    """The name of the backend that is asked for.

    The innermost context `backend` comes first, then the module's attribute, then the environment
    variable TRANSOM_BACKEND.  Raises SpecError if the variable names no backend.
    """
    if (name := _asked.get()) is not None:
        return name
    if module_backend != "auto":
        return module_backend
    return checked(os.environ.get(VARIABLE, "auto"), VARIABLE)


# -- what runs ---------------------------------------------------------------------------------


class Choice(NamedTuple):
    """A backend and the reason why it runs; final: modules inside take it, too."""

    backend: Reference
    reason: str
    final: bool = True

    @property
    def name(self) -> str:
        return self.backend.name


_running: ContextVar[Choice | None] = ContextVar("running", default=None)


def chosen() -> Choice | None:
    """The choice of a surrounding stage or mixer, None without one."""
    return None if torch.compiler.is_compiling() else _running.get()


def current() -> Reference:
    """The backend that runs here."""
    choice = chosen()
    return REFERENCE if choice is None else choice.backend


@contextmanager
def running(choice: Choice) -> Iterator[None]:
    """Context in which modules take the choice, if it is final, and share cached tables."""
    token = _running.set(choice if choice.final else None)
    try:
        with cache.shared(repeated=choice.backend is CPU):
            yield
    finally:
        _running.reset(token)
