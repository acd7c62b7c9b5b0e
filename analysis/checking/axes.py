"""Channels treated as an axis of the map, which is what a missing permute looks like.

A pooling that takes (b, h, w, c) for (b, c, h, w) slides along the width and the channels, within
each row: every size runs and every shape is right.  A linear layer before or after it hides which
channels met, so the check looks at every intermediate map, as a function of the maps before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from analysis.checking.checks import FAIL, PASS, Result, Subject, first_tensor, size_text
from analysis.models.influence import THRESHOLD, extent, sample_tokens, support

BACK = 4  # earlier maps, besides the input, whose influence on a map is measured
SIZES = ((9, 11), (10, 13))  # for any number of channels, all three axes of one size differ


def axes(subject: Subject) -> Result:
    """Fails where the channels of a map read neighbouring channels of an earlier map, the next
    channel the next ones, and tokens are mixed along one axis only, or by no part of the module.

    A dense layer, a norm and the block of a head read one set for many channels; a depthwise layer
    and a shift read one channel for each.
    """
    if subject.region is not None:
        return Result(PASS, "its region() says which axes are mixed")
    distinct = (size for size in SIZES if subject.channels not in size)
    size = next((s for s in distinct if not subject.problem(s)), subject.usable[-1])
    x = subject.input(size).requires_grad_()
    with _Maps(x) as maps:
        y = first_tensor(subject.at(torch.float64)(x.clone()))
    found = [out for out in (*maps.found, y) if out.requires_grad]
    for i, later in enumerate(found):
        for earlier in (x, *found[max(0, i - BACK) : i]):
            if steps := _steps(later, earlier):
                mixed = _mixed(later, earlier)
                if sum(mixed) == 1 or not any(_mixed(y, x)):
                    return Result(FAIL, _complaint(mixed, steps), size_text(size))
    return Result(PASS, size_text(size))


def _complaint(mixed: tuple[bool, bool], steps: list[int]) -> str:
    tokens = {(True, False): "tokens of one column", (False, True): "tokens of one row"}
    return (
        f"channel k reads the channels k{steps[0]:+d} to k{steps[-1]:+d} of "
        f"{tokens.get(mixed, 'one token')}: is a permute to (b, c, h, w) missing? If it is meant, "
        "state region()"
    )


class _Maps(TorchFunctionMode):
    """Records the maps of the shape of x that torch's functions return while it is active."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.shape = x.shape
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.shape == self.shape and out.is_floating_point():
            self.found.append(out)
        return out


def _mixed(y: Tensor, x: Tensor) -> tuple[bool, bool]:
    """(rows, columns): True if a token of the map y depends on several of them in x."""
    h, w = y.shape[1:3]
    sides = [extent(reach) for reach in support(y, x, sample_tokens(h, w, 9))]
    return max(rows for rows, _ in sides) > 1, max(cols for _, cols in sides) > 1


def _steps(y: Tensor, x: Tensor) -> list[int]:
    """Offsets from a channel of y to the neighbouring channels of x that it depends on, if the
    next channel has equal offsets; else an empty list."""
    middle = x.shape[-1] // 2
    first, second = ((_channels(y, k, x) - k).tolist() for k in (middle, middle - 1))
    neighbours = len(first) > 1 and first[-1] - first[0] == len(first) - 1
    return first if neighbours and first == second else []


def _channels(y: Tensor, k: int, x: Tensor) -> Tensor:
    """The channels of x that channel k of y depends on, at any tokens."""
    weights = torch.randn(
        y.shape[:-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    total = (y[..., k] * weights).sum()
    (grad,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
    sizes = grad.abs().amax((0, 1, 2))
    return (sizes > THRESHOLD * sizes.amax()).nonzero().flatten()
