"""The partition of one axis of a map into groups, with its pads and its shift."""

from __future__ import annotations

from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from attention.geometry.symbolic import known, round_up, smaller


class Cut(NamedTuple):
    """The axes, as einops names them, into which one axis divides.

    Args:
        order: of tokens (g) and groups, as they stand on the map.
        groups: those of the groups.
        sizes: of `order`.
        group_sizes: of `groups`.
    """

    order: str
    groups: str
    sizes: tuple[int, ...]
    group_sizes: tuple[int, ...]


class Axis(NamedTuple):
    """The partition of one axis into `n` groups of `extent` tokens.

    Args:
        length: real tokens.
        extent: tokens of a group.
        before: pads before the first token.
        padded: tokens and pads in all, a multiple of `extent`.
        shift: by how many positions the axis is rolled back before it is partitioned.
        interval: positions from one token of a group to the next: 1 for neighbours, n if one group
            reaches over the whole axis.  Between them, runs of interval * extent positions have
            `interval` groups each.
    """

    length: int
    extent: int
    before: int
    padded: int
    shift: int
    interval: int

    @property
    def n(self) -> int:
        """Groups along this axis."""
        return self.padded // self.extent

    def cut(self, name: str) -> Cut:
        """How the axis divides: into (groups, tokens), (tokens, groups) or (runs, tokens, groups).

        name: of the axis, h or w, for the letters of einops.
        """
        n, g, r, i = f"n{name}", f"g{name}", f"r{name}", f"i{name}"
        if known(self.interval == 1):
            return Cut(f"{n} {g}", n, (self.n, self.extent), (self.n,))
        if known(self.interval == self.n):
            return Cut(f"{g} {n}", n, (self.extent, self.n), (self.n,))
        groups = self.n // self.interval, self.interval
        return Cut(f"{r} {g} {i}", f"{r} {i}", (groups[0], self.extent, self.interval), groups)

    def split(self, x: Tensor) -> Tensor:
        """(padded,) -> (n, extent)."""
        cut = self.cut("h")
        return rearrange(x.unflatten(0, cut.sizes), f"{cut.order} -> ({cut.groups}) gh")

    def group_of(self, p: int) -> int:
        """The number of the group of a position that is rolled already; it may be negative."""
        return p // (self.interval * self.extent) * self.interval + p % self.interval

    def regions(self) -> list[int]:
        """A number per real token, equal for two tokens iff they may attend along this axis."""
        return [self.group_of(p - self.shift) for p in self._real()]

    def real_pairs(self) -> int:
        """Pairs (query, key) of real tokens in one group, those separated by the shift too."""
        tally = [0] * self.n
        for p in self._real():
            tally[self.group_of((p - self.shift) % self.padded)] += 1
        return sum(n * n for n in tally)

    def _real(self) -> range:
        return range(self.before, self.before + self.length)


def axis(
    length: int, extent: int, *, padded: int | None = None, even: bool = False, shift: int = 0,
    interlaced: bool = False, interval: int = 1,
) -> Axis:  # fmt: skip
    """The partition of `length` tokens into groups of `extent`.

    Args:
        padded: tokens and pads in all; None: the next multiple of `extent`.
        even: whether pads stand on both sides, fewer of them before; else all stand after.
        shift: the shift of a map with several groups; an axis of one group is not shifted.
        interlaced: whether a group takes every n-th position of all n, instead of neighbours.
        interval: of the tokens of a group, inside runs of interval * extent positions.
    """
    run = interval * extent
    if padded is None:
        padded = length if known(length == run) else round_up(length, run)
    before = (padded - length) // 2 if even else 0
    shift = smaller(shift, padded - extent) if shift else 0
    return Axis(length, extent, before, padded, shift, padded // extent if interlaced else interval)


def shifted_by_pads(length: int, extent: int, shift: int) -> Axis:
    """The partition of `length` tokens that extent - shift pads before the first token shift.

    The axis is not rolled, and has one group more; an axis of one group is not shifted.
    """
    if not shift:
        return axis(length, extent)
    before = smaller(extent - shift, round_up(length, extent) - extent)  # 0 in one group
    return Axis(length, extent, before, round_up(before + length, extent), 0, 1)
