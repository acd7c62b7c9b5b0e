"""Arithmetic and moves on sizes that a graph may leave free.

In eager a size is a number.  In a graph that torch.compile traces with free sizes, or that is
exported with them, it is a symbol: a comparison would make a graph for each answer, and ONNX
divides, rolls and slices by constants only.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def known(fact: bool) -> bool:
    """Whether a comparison of sizes holds: in eager simply itself.  In a graph whose sizes are
    free, False where it depends on them, so that one graph pads, shifts and masks for all."""
    if not torch.compiler.is_compiling():
        return fact
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(fact)


def copied(x: Tensor) -> Tensor:
    """In the order of its axes, always anew: whether a view would do depends on the sizes, and
    each answer would be another graph."""
    return x.clone(memory_format=torch.contiguous_format)


def whole(length: int, extent: int) -> int:
    """`length` rounded up to a multiple; of positive numbers only, which ONNX too divides so."""
    return (length + extent - 1) // extent * extent


def smaller(a: int, b: int) -> int:
    """min, which a graph whose sizes are free keeps open."""
    return cast(int, torch.sym_min(a, b))


def rolled(x: Tensor, *shifts: int) -> Tensor:
    """(b, h, w, c) rolled back along h and w.  ONNX rolls by constants only, so a shift that
    depends on a free size is an index."""
    if all(isinstance(shift, int) for shift in shifts):
        return torch.roll(x, [-shift for shift in shifts], (1, 2))
    for dim, shift in enumerate(shifts, start=1):
        length = x.shape[dim]
        x = x.index_select(dim, around(torch.arange(length, device=x.device), shift, length))
    return x


def between(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`narrow`; from a start that depends on a free size by an index, since a slice from there is
    of no known length to torch.compile."""
    if isinstance(start, int):
        return x.narrow(dim, start, length)
    return x.index_select(dim, torch.arange(length, device=x.device) + start)


def around(p: Tensor, shift: int, length: int) -> Tensor:
    """(p + shift) % length of positions below it: ONNX has remainders by constants only."""
    p = p + shift
    return torch.where(p < length, p, p - length)
