"""Public contexts of inference: `plain()` and `bounded(mebibytes)`."""

from __future__ import annotations

from contextlib import AbstractContextManager

from attention.execution.backends import backend
from attention.execution.chunks import bounded

__all__ = ["bounded", "plain"]


def plain() -> AbstractContextManager[None]:
    """Context in which the reference backend computes: `attention.backend("reference")`.

    Returns:
        A context manager.

    Example:
        >>> import attention, torch
        >>> from attention.fast import plain
        >>> mixer = attention.create("full", dim=8, heads=2).eval()
        >>> with plain():
        ...     attention.backend_of(mixer, torch.zeros(1, 4, 4, 8))[""].name
        'reference'
    """
    return backend("reference")
