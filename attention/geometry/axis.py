"""One axis of a map cut into groups: pads, shift, and which positions meet."""

from __future__ import annotations

from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from attention.geometry.symbolic import known, smaller, whole


class Axis(NamedTuple):
    """One axis of a cut: `length` real tokens, `before` pads, up to `padded` in all, rolled back
    by `shift`, in `n` groups of `extent`."""

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
        """For each real token, a number that two tokens share iff this axis lets them meet."""
        positions = range(self.before, self.before + self.length)
        if self.interlaced:
            return [p % self.n for p in positions]
        return [(p - self.shift) // self.extent for p in positions]

    def real_pairs(self) -> int:
        """Pairs (query, key) of real tokens that land in one group, parted by a shift or not."""
        tally = [0] * self.n
        for p in range(self.before, self.before + self.length):
            rolled = (p - self.shift) % self.padded
            tally[rolled % self.n if self.interlaced else rolled // self.extent] += 1
        return sum(n * n for n in tally)


def axis(
    length: int, extent: int, *, padded: int | None = None, even: bool = False, shift: int = 0,
    interlaced: bool = False,
) -> Axis:  # fmt: skip
    """Cuts `length` tokens into groups of `extent`.

    Pads after the last token, or evenly with the smaller part first, up to whole groups (or to
    `padded`).  One group that covers the axis needs no shift, more leave room for any.
    """
    if padded is None:
        padded = length if known(length == extent) else whole(length, extent)
    before = (padded - length) // 2 if even else 0
    shift = smaller(shift, padded - extent) if shift else 0
    return Axis(length, extent, before, padded, shift, interlaced)
