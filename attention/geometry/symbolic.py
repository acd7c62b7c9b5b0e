"""Arithmetic on sizes, and moves by them, where a graph may leave sizes free.

In eager a size is a number.  In a graph that torch.compile traces with free sizes, or that is
exported with them, it is a symbol: a comparison would make a graph for each answer, and ONNX
divides, rolls and slices by constants only.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def known(fact: bool) -> bool:
    """True if a comparison of sizes certainly holds.

    In eager that is the comparison.  In a graph it is False if the answer depends on a free size,
    so that one graph pads, shifts and masks for all sizes.
    """
    if not torch.compiler.is_compiling():
        return fact
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(fact)


def copied(x: Tensor) -> Tensor:
    """A contiguous copy, also where x is contiguous.

    Whether a view suffices depends on the sizes, and each answer would be another graph.
    """
    return x.clone(memory_format=torch.contiguous_format)


def in_graph_copied(x: Tensor) -> Tensor:
    """x in eager, where a view costs nothing; in a graph `copied`, which holds for any batch."""
    return copied(x) if torch.compiler.is_compiling() else x


def round_up(length: int, extent: int) -> int:
    """`length` rounded up to a multiple of `extent`.

    The dividend is positive, because ONNX rounds negative quotients otherwise than Python.
    """
    return (length + extent - 1) // extent * extent


def smaller(a: int, b: int) -> int:
    """min(a, b), which stays symbolic in a graph with free sizes."""
    return cast(int, torch.sym_min(a, b))


def rolled(x: Tensor, *shifts: int) -> Tensor:
    """(b, h, w, c) rolled back along h and w by `shifts`.

    ONNX rolls by constants only, so a shift that depends on a free size becomes an index.
    """
    if all(isinstance(shift, int) for shift in shifts):
        return torch.roll(x, [-shift for shift in shifts], (1, 2))
    for dim, shift in enumerate(shifts, start=1):
        length = x.shape[dim]
        x = x.index_select(dim, wrap(torch.arange(length, device=x.device), shift, length))
    return x


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`Tensor.narrow`, also from a start that depends on a free size.

    Such a start needs an index: torch.compile does not know the length of a slice from it.
    """
    if isinstance(start, int):
        return x.narrow(dim, start, length)
    return x.index_select(dim, torch.arange(length, device=x.device) + start)


def wrap(p: Tensor, shift: int, length: int) -> Tensor:
    """(p + shift) % length for positions p < length and shift <= length.

    ONNX has remainders by constants only.
    """
    p = p + shift
    return torch.where(p < length, p, p - length)
