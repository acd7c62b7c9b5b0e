"""The tokens of a batch of maps in the order of their groups, as the fast path walks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention import fast
from attention.groups import Groups


class Order(NamedTuple):
    """The tokens of a batch of maps, group by group, in parts that stay in the cache.

    A part is some images and some groups: all groups of several images, or several groups of one
    image.  `places` are the part's tokens in the order of the groups.

    inward: for each token of the groups its place on the map, any for the `pads` among them.
    outward: for each token of the map its place in the groups.  None for no difference.
    """

    groups: Groups
    inward: Tensor | None
    outward: Tensor | None
    pads: Tensor | None

    @property
    def length(self) -> int:
        return self.groups.rows.extent * self.groups.cols.extent

    def parts(self, x: Tensor, width: int) -> Iterator[tuple[slice, slice, slice]]:
        """(images, groups, places) of x, whose intermediates are `width` numbers a token wide."""
        for images, some in fast.parts(x, self.groups.n, self.length, width):
            yield images, some, slice(some.start * self.length, some.stop * self.length)

    def over(
        self, x: Tensor, width: int, run: Callable[[slice, slice, slice], Tensor]
    ) -> Tensor:  # fmt: skip
        """`run` of (images, groups, places) for every part, all answers in the order of the map:
        (b, tokens of a map, c)."""
        out = None
        for images, part, places in self.parts(x, width):
            y = run(images, part, places)
            y = y.view(images.stop - images.start, places.stop - places.start, -1)
            if y.shape[:2] == (len(x), self.groups.tokens):
                return self.back(y)
            if out is None:
                out = y.new_empty(len(x), self.groups.tokens, y.shape[2])
            out[images, places] = y
        assert out is not None
        return self.back(out)

    def take(self, tokens: Tensor, places: slice) -> Tensor:
        """(images, tokens of a map, c) -> (images, places, c); zeros for pads."""
        if self.inward is None:
            return tokens
        return self.clear(select(tokens, self.inward[places]), places)

    def clear(self, y: Tensor, places: slice) -> Tensor:
        """y with zeros at the pads, in place; its tokens are (images, places) in any split."""
        if self.pads is not None:
            pads = self.pads[places].nonzero()[:, 0]
            y.view(-1, places.stop - places.start, *y.shape[2:]).index_fill_(1, pads, 0)
        return y

    def share(self, i: int, n: int, device: torch.device) -> Order:
        """The same where a token's channels are `n` equal parts, of which part `i` is taken; maps
        without pads of their own are then (b, n * tokens of a map, c / n)."""
        assert self.pads is None
        inward = self.inward
        if inward is None:
            inward = torch.arange(self.groups.tokens, device=device)
        return self._replace(inward=inward * n + i)

    def grouped(self, y: Tensor, heads: int) -> tuple[Tensor, ...]:
        """(..., 3 * heads * d) -> q, k, v as views (rows, tokens of a group, heads, d)."""
        return y.view(-1, self.length, 3, heads, y.shape[-1] // (3 * heads)).unbind(2)

    def back(self, out: Tensor) -> Tensor:
        """(b, all places, c) -> (b, tokens of a map, c)."""
        return out if self.outward is None else select(out, self.outward)


def order(groups: Groups, device: torch.device) -> Order:
    if groups.n == 1 and not groups.padded:
        return Order(groups, None, None, None)
    inward, outward = groups.order(device)
    pads = inward < 0 if groups.padded else None
    return Order(groups, inward.clamp(min=0), outward, pads)


def select(x: Tensor, index: Tensor) -> Tensor:
    """(b, l, c) -> (b, len(index), c): index_select along axis 1, as one along axis 0, which takes
    half the time."""
    b, length, c = x.shape
    places = index if b == 1 else (torch.arange(b, device=x.device)[:, None] * length + index)
    y = x.reshape(b * length, c).index_select(0, places.flatten())
    return y.view(b, len(index), c)
