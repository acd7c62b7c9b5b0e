"""Tiles of queries whose keys overlap with those of other tiles, and everything that follows.

Along each axis a tile has neighbouring queries, and its keys are one run of tokens around them;
the tiles of a map are the pairs of a tile of its rows and a tile of its columns.  With `classes`
above 1, an axis is split into so many interlaced classes first, each of which has tiles of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from attention.geometry.symbolic import known, round_up, smaller

CPU = torch.device("cpu")


class Layout(NamedTuple):
    """Where the n tiles of an axis have their queries and keys.

    Args:
        queries: (n, tile), the token of every query.
        keys: (n, keys), the token of every key; keys outside the axis have numbers outside, too.
            Where queries see inward, a key after the end of a class has its last token, and no
            query sees it.
        steps: (n, tile, keys), place of the query minus place of the key, in the class.
        visible: (n, tile, keys) bool, the pairs whose query sees the key, which is on the axis.
    """

    queries: Tensor
    keys: Tensor
    steps: Tensor
    visible: Tensor


class TileAxis(NamedTuple):
    """The tiles of one axis.

    Args:
        length: tokens.
        tile: queries of a tile; the last tile of a class may have fewer, and repeats its last.
        reach: tokens on each side of a query that it sees.
        inward: whether each query has a window of 2 reach + 1 keys, which stays on the axis by
            moving inward at its ends; else all queries of a tile see `reach` tokens on each side
            of it, on the axis or outside.
        classes: distance of neighbouring tokens of a class.
    """

    length: int
    tile: int
    reach: int
    inward: bool
    classes: int = 1

    @property
    def longest(self) -> int:
        """Tokens of the longest class; others may have one less."""
        return (self.length + self.classes - 1) // self.classes

    @property
    def per_class(self) -> int:
        """Tiles of a class."""
        return (self.longest + self.tile - 1) // self.tile

    @property
    def n(self) -> int:
        """Tiles of this axis, class by class."""
        return self.classes * self.per_class

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        around = self.tile + 2 * self.reach
        return smaller(around, self.longest) if self.inward else around

    @property
    def window(self) -> int:
        """Keys that one query sees, pads among them."""
        return 2 * self.reach + 1 if self.inward else self.keys

    @property
    def pads(self) -> tuple[int, int]:
        """(before, after) the tokens: keys that are outside the axis."""
        if self.inward:
            return 0, 0
        return self.reach, self.n * self.tile + self.reach - self.length

    # -- by arithmetic that a graph with free sizes can hold -------------------------------------

    def starts(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(n, 1) each: the places of every tile's first query and first key in its class, and the
        tokens of the class."""
        tile, number = self._numbers(device)
        query = tile * self.tile
        limit = (self.length + self.classes - 1 - number) // self.classes
        key = query - self.reach
        if self.inward:
            key = torch.minimum(key, limit - self.keys).clamp(min=0)
        return query, key, limit

    def _numbers(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(n, 1) twice: the number of every tile in its class, and of its class."""
        tile = torch.arange(self.per_class, device=device)
        number = torch.arange(self.classes, device=device)[:, None]
        both = tile + 0 * number, number + 0 * tile  # expanded, free sizes would be compared
        return both[0].flatten()[:, None], both[1].flatten()[:, None]

    def layout(self, device: torch.device) -> Layout:
        """Where every tile has its queries and keys."""
        start, first, limit = self.starts(device)
        query = start + torch.arange(self.tile, device=device)  # (n, tile)
        key = first + torch.arange(self.keys, device=device)  # (n, keys)
        steps = query[:, :, None] - key[:, None, :]
        if self.inward:
            low = torch.minimum((query - self.reach).clamp(min=0), limit - self.window)
            ahead = key[:, None, :] - low[:, :, None]  # of the first key that a query sees
            visible = (ahead >= 0) & (ahead < self.window)
            key = torch.minimum(key, limit - 1)
        else:
            on_axis = (key >= 0) & (key < limit)
            visible = on_axis[:, None, :] & (query == query)[:, :, None]
        query = torch.minimum(query, limit - 1)
        if not known(self.classes == 1):
            _, number = self._numbers(device)
            query, key = query * self.classes + number, key * self.classes + number
        return Layout(query, key, steps, visible)

    def home(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(length,) twice: the tile of every token, and its place in the tile."""
        token = torch.arange(self.length, device=device)
        place = token // self.classes
        tile = place // self.tile
        return token % self.classes * self.per_class + tile, place - tile * self.tile

    def kinds(self) -> list[list[int]]:
        """The tiles in groups of equal steps and visible keys, by integers alone."""
        return _kinds(self)

    # -- integers ---------------------------------------------------------------------------------

    def seen(self, query: int) -> range:
        """The tokens that a query sees, those outside the axis left out."""
        d, place = self.classes, query // self.classes
        count = (self.length + d - 1 - query % d) // d
        if self.inward:
            first = max(min(place - self.reach, count - self.window), 0)
            last = first + self.window
        else:
            start = place // self.tile * self.tile - self.reach
            first, last = max(start, 0), min(start + self.keys, count)
        return range(query % d + first * d, query % d + last * d, d)

    def real_pairs(self, real: int) -> int:
        """Pairs (query, key that it sees) of the first `real` tokens; the others are pads."""
        return sum(sum(key < real for key in self.seen(query)) for query in range(real))


@cache
def _kinds(axis: TileAxis) -> list[list[int]]:
    query, key, limit = axis.starts(CPU)
    before, after = (-key).clamp(min=0), (key + axis.keys - limit).clamp(min=0)
    groups: dict[tuple[int, ...], list[int]] = {}
    for tile, kind in enumerate(torch.cat([query - key, before, after], dim=1).tolist()):
        groups.setdefault(tuple(kind), []).append(tile)
    return list(groups.values())


def balanced(length: int, longest: int, classes: int = 1) -> int:
    """The side of the fewest tiles of almost equal length, at most `longest`, of one class."""
    tokens = round_up(length, classes) // classes
    tiles = round_up(tokens, longest) // longest
    return round_up(tokens, tiles) // tiles


class Tiles(NamedTuple):
    """The tiles of an (h, w) map: an immutable value."""

    rows: TileAxis
    cols: TileAxis

    @property
    def n(self) -> int:
        """Number of tiles."""
        return self.rows.n * self.cols.n

    @property
    def length(self) -> int:
        """Queries of a tile."""
        return self.rows.tile * self.cols.tile

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return self.rows.keys * self.cols.keys

    @property
    def seen(self) -> int:
        """Keys of a tile that one query sees, pads among them."""
        return self.rows.window * self.cols.window

    @property
    def single(self) -> bool:
        """True if certainly every tile is one query."""
        return known(self.length == 1)

    @property
    def inward(self) -> bool:
        return self.rows.inward

    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(before, after) the tokens of each axis: keys that are outside the map."""
        return self.rows.pads, self.cols.pads

    def kinds(self) -> Iterator[tuple[list[int], list[int]]]:
        """(tiles of the rows, tiles of the columns) whose pairs are tiles with an equal mask."""
        for rows in self.rows.kinds():
            for cols in self.cols.kinds():
                yield rows, cols

    def region(self, query: tuple[int, int]) -> Tensor:
        """(h, w) bool: the tokens that `query` (row, column) sees, by integers alone."""
        seen = torch.zeros(self.rows.length, self.cols.length, dtype=torch.bool)
        rows, cols = (list(axis.seen(at)) for axis, at in zip(self, query, strict=True))
        seen[torch.tensor(rows)[:, None], torch.tensor(cols)] = True
        return seen
