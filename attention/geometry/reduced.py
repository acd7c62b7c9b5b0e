"""A map of keys that is smaller than the map of the queries, and everything that follows from it.

A key stands for a cell of the map: R x R neighbours that no other key has, or one of p x p cells
that cover the map and may overlap.  All queries attend to all keys: there is one group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from attention.geometry.symbolic import copied, known, narrow, round_up, smaller


class ReducedAxis(NamedTuple):
    """The cells of the keys along one axis.

    Args:
        length: tokens.
        n: keys.
        padded: tokens and pads in all; the pads stand after the tokens.
        ratio: tokens and pads of a cell; None: n cells that cover the axis as evenly as whole
            numbers allow, each with the same tokens as adaptive pooling.
    """

    length: int
    n: int
    padded: int
    ratio: int | None

    def cells(self) -> list[tuple[int, int]]:
        """(first, after the last) token of each key's cell, without pads."""
        if self.ratio is None:
            n, length = self.n, self.length
            return [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]
        starts = range(0, self.n * self.ratio, self.ratio)
        return [(start, min(start + self.ratio, self.length)) for start in starts]

    def shares(self, like: Tensor) -> Tensor:
        """(n, length): what each token adds to the mean of each cell."""
        i = torch.arange(self.n, device=like.device)[:, None]
        token = torch.arange(self.length, device=like.device)
        first = i * self.length // self.n
        end = ((i + 1) * self.length + self.n - 1) // self.n
        inside = (token >= first) & (token < end)  # (n, length)
        return inside.to(like.dtype) / (end - first)

    @property
    def used(self) -> int:
        """Tokens in the cells; those after them form no key."""
        return self.cells()[-1][1]

    @property
    def read(self) -> int:
        """Tokens and pads in the cells."""
        return self.used if self.ratio is None else self.n * self.ratio


def strided(length: int, ratio: int, *, pad: bool) -> ReducedAxis:
    """Cells of `ratio` neighbours.

    pad: the remainder is padded to a cell, else no cell has it.  An axis shorter than a cell is
    padded to one in either case.
    """
    padded = round_up(length, ratio) if pad else length + ratio - smaller(length, ratio)
    return ReducedAxis(length, padded // ratio, padded, ratio)


def pooled(length: int, n: int) -> ReducedAxis:
    """`n` cells that cover the axis, whatever its length."""
    return ReducedAxis(length, n, length, None)


class Reduced(NamedTuple):
    """The keys of an (h, w) map, one for each cell: an immutable value."""

    rows: ReducedAxis
    cols: ReducedAxis

    @property
    def n(self) -> int:
        """Number of keys."""
        return self.rows.n * self.cols.n

    @property
    def tokens(self) -> int:
        """Number of queries."""
        return self.rows.length * self.cols.length

    @property
    def pairs(self) -> int:
        """Pairs (query, key)."""
        return self.tokens * self.n

    @property
    def pads(self) -> int:
        """Pads in the cells of all keys."""
        return self.rows.read * self.cols.read - self.rows.used * self.cols.used

    def pad(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, hp, wp, c), padded with zeros."""
        after = [axis.padded - axis.length for axis in self]
        if known(after[0] + after[1] == 0):
            return x
        return F.pad(x, (0, 0, 0, after[1], 0, after[0]))

    def split(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, nh, nw, l c): the tokens of every cell of neighbours, row by row."""
        rows, cols = self
        r, s = rows.ratio, cols.ratio
        assert r is not None and s is not None
        x = narrow(narrow(self.pad(x), 1, 0, rows.n * r), 2, 0, cols.n * s)
        x = x.unflatten(2, (cols.n, s)).unflatten(1, (rows.n, r))  # (b, nh, r, nw, s, c)
        return copied(x.transpose(2, 3)).flatten(3)

    def mean(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, nh, nw, c): the mean of the tokens of every cell.

        ONNX has no adaptive pooling of free sizes; there it is a product with each axis.
        """
        (rows, cols), x = self, rearrange(x, "b h w c -> b c h w")
        if all(isinstance(axis.length, int) for axis in self):
            y = F.adaptive_avg_pool2d(x, (rows.n, cols.n))  # (b, c, nh, nw)
        else:
            y = rows.shares(x) @ x @ cols.shares(x).mT  # (b, c, nh, nw)
        return rearrange(y, "b c h w -> b h w c")

    def region(self, query: tuple[int, int]) -> Tensor:
        """(h, w) bool: the tokens of all cells, by integers alone, and the query's own.

        A single key has all of the attention, whatever the query.
        """
        seen = torch.zeros(self.rows.length, self.cols.length, dtype=torch.bool)
        seen[query] = self.n > 1
        seen[: self.rows.used, : self.cols.used] = True
        return seen
