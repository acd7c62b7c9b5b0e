"""Two contexts under their first names: `plain()` and `bounded(mebibytes)`."""

from __future__ import annotations

from contextlib import AbstractContextManager

from attention.execution.backends import backend
from attention.execution.chunks import bounded

__all__ = ["bounded", "plain"]


def plain() -> AbstractContextManager[None]:
    """Inside, everything is computed by the reference backend: `attention.backend("reference")`."""
    return backend("reference")
