"""The partition of one axis of a map into groups, with its pads and its shift."""

from __future__ import annotations

from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from attention.geometry.symbolic import known, round_up, smaller


class Axis(NamedTuple):
    """The partition of one axis into `n` groups of `extent` tokens.

    Args:
        length: real tokens.
        extent: tokens of a group.
        before: pads before the first token.
        padded: tokens and pads in all, a multiple of `extent`.
        shift: by how many positions the axis is rolled back before it is partitioned.
        interlaced: whether a group takes every n-th position, instead of neighbours.
    """

    length: int
    extent: int
    before: int
    padded: int
    shift: int
    interlaced: bool

    @property
    def n(self) -> int:
        """Groups along this axis."""
        return self.padded // self.extent

    def split(self, x: Tensor) -> Tensor:
        """(padded,) -> (n, extent)."""
        pattern = "(g n) -> n g" if self.interlaced else "(n g) -> n g"
        return rearrange(x, pattern, n=self.n, g=self.extent)

    def regions(self) -> list[int]:
        """A number per real token, equal for two tokens iff they may attend along this axis."""
        positions = range(self.before, self.before + self.length)
        if self.interlaced:
            return [p % self.n for p in positions]
        return [(p - self.shift) // self.extent for p in positions]

    def real_pairs(self) -> int:
        """Pairs (query, key) of real tokens in one group, those separated by the shift too."""
        tally = [0] * self.n
        for p in range(self.before, self.before + self.length):
            rolled = (p - self.shift) % self.padded
            tally[rolled % self.n if self.interlaced else rolled // self.extent] += 1
        return sum(n * n for n in tally)


def axis(
    length: int, extent: int, *, padded: int | None = None, even: bool = False, shift: int = 0,
    interlaced: bool = False,
) -> Axis:  # fmt: skip
    """The partition of `length` tokens into groups of `extent`.

    Args:
        padded: tokens and pads in all; None: the next multiple of `extent`.
        even: whether pads stand on both sides, fewer of them before; else all stand after.
        shift: the shift of a map with several groups; an axis of one group is not shifted.
        interlaced: whether a group takes every n-th position, instead of neighbours.
    """
    if padded is None:
        padded = length if known(length == extent) else round_up(length, extent)
    before = (padded - length) // 2 if even else 0
    shift = smaller(shift, padded - extent) if shift else 0
    return Axis(length, extent, before, padded, shift, interlaced)


def shifted_by_pads(length: int, extent: int, shift: int) -> Axis:
    """The partition of `length` tokens that extent - shift pads before the first token shift.

    The axis is not rolled, and has one group more; an axis of one group is not shifted.
    """
    if not shift:
        return axis(length, extent)
    before = smaller(extent - shift, round_up(length, extent) - extent)  # 0 in one group
    return Axis(length, extent, before, round_up(before + length, extent), 0, False)
