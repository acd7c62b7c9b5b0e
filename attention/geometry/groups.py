"""The partition of a map into groups, and everything that follows from it.

Axis letters here and in every mixer:

    b  batch                      h w    rows and columns of the map
    nh nw  groups along an axis   gh gw  extent of a group
    c  channels

Two patterns are nearly the whole geometry of the field, and differ in the order of two letters: a
contiguous group (nh gh) takes neighbouring rows, an interlaced group (gh nh) every nh-th row.  In
the third, rows are cut into runs, whose groups are interlaced (rh gh ih).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from attention.geometry.axis import Axis, Cut
from attention.geometry.symbolic import copied, known, narrow, rolled, wrap


def _map(rows: Cut, cols: Cut) -> str:
    """The axes of the map, each divided, as einops names them: (b, nh, gh, nw, gw, c) and alike."""
    return f"b {rows.order} {cols.order} c"


def _grouped(rows: Cut, cols: Cut) -> str:
    """The axes of the groups: (b, nh, nw, gh, gw, c) and alike."""
    return f"b {rows.groups} {cols.groups} gh gw c"


class Groups(NamedTuple):
    """The partition of an (h, w) map into the groups of one branch: an immutable value."""

    rows: Axis
    cols: Axis

    # -- arithmetic ----------------------------------------------------------------------

    @property
    def extent(self) -> tuple[int, int]:
        return self.rows.extent, self.cols.extent

    @property
    def n(self) -> int:
        """Number of groups."""
        return self.rows.n * self.cols.n

    @property
    def tokens(self) -> int:
        """Tokens of the padded map."""
        return self.rows.padded * self.cols.padded

    @property
    def real_tokens(self) -> int:
        return self.rows.length * self.cols.length

    @property
    def pairs(self) -> int:
        """Pairs (query, key) inside groups, pads included."""
        return self.tokens * self.rows.extent * self.cols.extent

    @property
    def real_pairs(self) -> int:
        return self.rows.real_pairs() * self.cols.real_pairs()

    @property
    def padded(self) -> bool:
        """False if the map certainly has no pad."""
        return not known(self.tokens == self.real_tokens)

    @property
    def shifted(self) -> bool:
        """False if certainly no axis is rolled."""
        return not known(self.rows.shift + self.cols.shift == 0)

    # -- the map -------------------------------------------------------------------------

    def pad(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, hp, wp, c), padded with zeros."""
        if not self.padded:
            return x
        r, c = self.rows, self.cols
        after_r, after_c = r.padded - r.length - r.before, c.padded - c.length - c.before
        return F.pad(x, (0, 0, c.before, after_c, r.before, after_r))

    def crop(self, x: Tensor) -> Tensor:
        """(b, hp, wp, c) -> (b, h, w, c): the inverse of `pad`."""
        if not self.padded:
            return x
        r, c = self.rows, self.cols
        return copied(narrow(narrow(x, 1, r.before, r.length), 2, c.before, c.length))

    def roll(self, x: Tensor) -> Tensor:
        """(b, hp, wp, c) -> (b, hp, wp, c), rolled back by the shift."""
        return rolled(x, self.rows.shift, self.cols.shift) if self.shifted else x

    def unroll(self, x: Tensor) -> Tensor:
        """The inverse of `roll`."""
        back = (axis.padded - axis.shift for axis in self)
        return rolled(x, *back) if self.shifted else x

    def split(self, x: Tensor) -> Tensor:
        """(b, hp, wp, c) -> (b, n, l, c): the tokens of every group."""
        rows, cols = self.rows.cut("h"), self.cols.cut("w")
        x = x.unflatten(2, cols.sizes).unflatten(1, rows.sizes)  # (b, nh, gh, nw, gw, c)
        x = copied(rearrange(x, f"{_map(rows, cols)} -> {_grouped(rows, cols)}"))
        return x.flatten(-3, -2).flatten(1, -3)

    def merge(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        rows, cols = self.rows.cut("h"), self.cols.cut("w")
        x = x.unflatten(2, self.extent).unflatten(1, (*rows.group_sizes, *cols.group_sizes))
        x = copied(rearrange(x, f"{_grouped(rows, cols)} -> {_map(rows, cols)}"))
        return x.flatten(1 + len(rows.sizes), -2).flatten(1, len(rows.sizes))

    def partition(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, n, l, c): pads with zeros, rolls and splits."""
        return self.split(self.roll(self.pad(x)))

    def reverse(self, x: Tensor) -> Tensor:
        """(b, n, l, c) -> (b, h, w, c): the inverse of `partition`."""
        return self.crop(self.unroll(self.merge(x)))

    # -- the mask ------------------------------------------------------------------------

    def separated(self, device: torch.device) -> Tensor | None:
        """(n, l, l) bool: pairs of one group that the shift separated; None without a shift.

        Rolled back by s, the first s tokens of an axis stand last in its last group, beside
        tokens of the opposite edge; they attend to each other alone.
        """
        if not self.shifted:
            return None
        side = self._along(device, lambda p, a: p >= a.padded - a.shift)  # (n, l)
        return side[:, :, None] != side[:, None, :]

    def pads(self, device: torch.device) -> Tensor | None:
        """(n, l, l) bool: pairs whose key is a pad other than the query; None without pads."""
        if not self.padded:
            return None

        def is_pad(p: Tensor, a: Axis) -> Tensor:
            origin = wrap(p, a.shift, a.padded)
            return (origin < a.before) | (origin >= a.before + a.length)

        pad = self._along(device, is_pad) > 0  # (n, l)
        self_pair = torch.eye(pad.shape[1], dtype=torch.bool, device=device)
        return pad[:, None, :] & ~self_pair

    def _along(self, device: torch.device, test: Callable[[Tensor, Axis], Tensor]) -> Tensor:
        """(n, l): for every token the result of `test` on its row, times 2, plus on its column."""
        rows, cols = (a.split(test(torch.arange(a.padded, device=device), a).int()) for a in self)
        both = 2 * rows[:, None, :, None] + cols[:, None, :]  # (nh, nw, gh, gw)
        return both.flatten(2).flatten(0, 1)

    # -- the receptive field -------------------------------------------------------------

    def region(self, query: tuple[int, int]) -> Tensor:
        """(h, w) bool: the tokens that attend with `query` (row, column), by integers alone."""
        rows, cols = self.rows.regions(), self.cols.regions()
        row = torch.tensor([r == rows[query[0]] for r in rows])
        col = torch.tensor([c == cols[query[1]] for c in cols])
        return row[:, None] & col
