"""The context of the GPU kernel under its first name: `kernel()`."""

from __future__ import annotations

from attention.kernels.fused import kernel

__all__ = ["kernel"]
