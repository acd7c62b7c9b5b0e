"""What the tokens beside a map read, and what of them it reads, by integer arithmetic.

Class tokens and registers are read by every token and read all that the keys of their mixer are
made of; a messenger is read by its window, and reads those of its region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention.configs.beside import MessengerConfig
from attention.mixers.sra import SpatialReductionMixer

Grid = tuple[int, int]
Node = Grid | int  # a token of a map by row and column, or the number of one beside it


def _nothing(shape: Grid | int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


class Beside(NamedTuple):
    """The tokens beside the input and the output map of a layer.

    before, after: their numbers.  tokens(node): (before,) bool, those that a token of the output
    reads, on its map or beside it.  places(i): (h, w) bool of the input map, what token i beside
    the output reads; none: nothing.
    """

    before: int = 0
    after: int = 0
    tokens: Callable[[Node], Tensor] = lambda node: _nothing(0)
    places: Callable[[int], Tensor] | None = None


def begun(before: int, after: int) -> Beside:
    """Tokens that begin with this layer, and no others go on; they are learned."""
    return Beside(before, after, lambda node: _nothing(before))


def kept(tokens: int) -> Beside:
    """Tokens that this layer leaves as they are, and that its map does not read."""

    def own(node: Node) -> Tensor:
        seen = _nothing(tokens)
        if isinstance(node, int):
            seen[node] = True
        return seen

    return Beside(tokens, tokens, own)


def handed_on(reads: Callable[[Grid], Tensor], before: Grid, after: Grid) -> Beside:
    """Messengers of (nh, nw) windows that a strided layer downsamples as their map.

    reads: what the layer reads of a map with a token for each messenger.
    """
    count = before[0] * before[1]

    def own(node: Node) -> Tensor:
        if isinstance(node, tuple):
            return _nothing(count)
        return reads(divmod(node, after[1])).flatten()

    return Beside(count, after[0] * after[1], own)


def mixed(mixer: Any, grid: Grid, tokens: int) -> Beside:
    """What a mixer lets the map and the tokens beside it read of each other, up to the exchange of
    the messengers."""
    if not mixer.config.takes_tokens:
        return kept(tokens)
    if isinstance(mixer.config, MessengerConfig):
        return _messengers(mixer.config, grid)

    def keys(_: int) -> Tensor:
        if isinstance(mixer, SpatialReductionMixer):  # those of no cell are in no key
            return mixer.region(*grid, (0, 0))
        return ~_nothing(grid)

    return Beside(tokens, tokens, lambda node: ~_nothing(tokens), keys)


def _messengers(config: MessengerConfig, grid: Grid) -> Beside:
    """A block ends with the exchange, so that a messenger then has read all of its region."""
    (gh, gw), r, (nh, nw) = config.size, config.region, config.windows(*grid)

    def own(node: Node) -> Tensor:
        seen = _nothing((nh, nw))
        if isinstance(node, tuple):
            seen[node[0] // gh, node[1] // gw] = True
        else:
            top, left = (i // r * r for i in divmod(node, nw))
            seen[top : top + r, left : left + r] = True
        return seen.flatten()

    def windows(i: int) -> Tensor:
        seen = own(i).unflatten(0, (nh, nw))
        seen = seen.repeat_interleave(gh, 0).repeat_interleave(gw, 1)
        return seen[: grid[0], : grid[1]]

    return Beside(nh * nw, nh * nw, own, windows)
