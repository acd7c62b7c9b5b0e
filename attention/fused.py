"""Public context of the GPU kernel: `kernel()`."""

from __future__ import annotations

from attention.kernels.fused import kernel

__all__ = ["kernel"]
