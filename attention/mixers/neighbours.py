"""Keys around every query (NAT, section 3; DiNAT) or every block of queries (HaloNet, 2.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.neighbours import HaloConfig, NeighbourhoodConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution import torch_private
from attention.execution.backends import Reference
from attention.geometry.symbolic import copied, known, narrow, smaller
from attention.geometry.tiles import TileAxis, Tiles, balanced
from attention.mixer import map_size
from attention.softmax.branch import projection
from attention.softmax.layers import SoftmaxMixer
from attention.softmax.tiled_attention import TiledAttention

# Sides of a tile of queries, by measurement on a CPU: with gradients, scores of more keys cost less
# than keys of more tiles.
LONGEST, WITH_GRADIENTS = (4, 8), (7, 7)
IN_GRAPHS = 7  # the same where sizes are free


@register("neighbourhood", config=NeighbourhoodConfig)
class NeighbourhoodMixer(SoftmaxMixer):
    """Attention of every token to `kernel` tokens along each axis, `dilation` tokens apart.

    A map of fewer than kernel * dilation tokens along an axis is padded to them at its end, before
    the projection, and pads are seen.  The keys of a query are gathered where operators are
    observed, so that they are what is counted; elsewhere tiles of queries share their keys and a
    mask.
    """

    config: NeighbourhoodConfig

    def __init__(
        self, config: NeighbourhoodConfig, *, dim: int, heads: int, index: int = 0
    ) -> None:  # fmt: skip
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.branch = TiledAttention(config, dim=dim, heads=heads, window=config.kernel)
        self.proj = projection(dim, dim)

    def padded(self, h: int, w: int) -> tuple[int, int]:
        """(h, w) of a map with its pads."""
        least = self.config.kernel * self.config.dilation
        return h + least - smaller(h, least), w + least - smaller(w, least)

    def tiles(self, h: int, w: int, longest: int | None = None) -> Tiles:
        """The tiles of an (h, w) map; `longest` states their side, else it depends on the map."""
        kernel, dilation = self.config.kernel, self.config.dilation
        sides = WITH_GRADIENTS if torch.is_grad_enabled() else LONGEST
        rows, cols = (
            TileAxis(n, longest or balanced(n, side, dilation), kernel // 2, True, dilation)
            for n, side in zip(self.padded(h, w), sides, strict=True)
        )
        return Tiles(rows, cols)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = map_size(x)
        hp, wp = self.padded(h, w)
        if not known(hp * wp == h * w):
            x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h))
        graph = torch.compiler.is_compiling()
        gathered = not graph and observed(x)
        tiles = self.tiles(h, w, 1 if gathered else IN_GRAPHS if graph else None)

        def body(x: Tensor) -> Tensor:
            split = not (graph or gathered)
            y = self.branch(*self.project(x), tiles, split=split)  # (b, hp, wp, c)
            return self.proj(y)

        y = backend.over_images(body, x, image_bytes=3 * hp * wp * self.dim * x.element_size())
        if known(hp * wp == h * w):
            return y
        return copied(narrow(narrow(y, 1, 0, h), 2, 0, w))

    def cost(self, h: int, w: int) -> Cost:
        hp, wp = self.padded(h, w)
        tiles, square = self.tiles(h, w, 1), self.dim * self.dim
        pairs = hp * wp * self.config.kernel**2
        real = tiles.rows.real_pairs(h) * tiles.cols.real_pairs(w)
        pads = hp * wp - h * w
        padding = 4 * pads * square + 2 * (pairs - real) * self.dim
        position = self.branch.position_cost(0)
        return Cost(4 * hp * wp * square, 2 * pairs * self.dim, position, padding)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.tiles(h, w, 1).region(query)[:h, :w]


def observed(x: Tensor) -> bool:
    """True where operators are counted, traced or replaced."""
    if torch.jit.is_tracing() or x.device.type == "meta":
        return True
    return torch_private.function_modes() or torch_private.dispatch_modes()


@register("halo", config=HaloConfig)
class HaloMixer(SoftmaxMixer):
    """Attention of the queries of a block to the block and `radius` tokens on each side of it.

    Keys and values outside the map are zeros that take their part of the softmax, as in the paper,
    or are masked.  With block=1 it is stand-alone self-attention of 2 radius + 1 keys a side, with
    radius=0 attention in windows.
    """

    config: HaloConfig

    def __init__(self, config: HaloConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.branch = TiledAttention(config, dim=dim, heads=heads, window=config.window)
        self.proj = projection(dim, dim) if config.proj else nn.Identity()

    def tiles(self, h: int, w: int) -> Tiles:
        """The blocks of an (h, w) map with their halos."""
        block, radius = self.config.block, self.config.radius
        return Tiles(*(TileAxis(n, block, radius, inward=False) for n in (h, w)))

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = map_size(x)
        tiles, split = self.tiles(h, w), not torch.compiler.is_compiling()

        def body(x: Tensor) -> Tensor:
            y = self.branch(*self.project(x), tiles, split=split)
            return self.proj(y)  # (b, h, w, c)

        return backend.over_images(body, x, image_bytes=3 * h * w * self.dim * x.element_size())

    def cost(self, h: int, w: int) -> Cost:
        tiles, square = self.tiles(h, w), self.dim * self.dim
        queries = tiles.n * tiles.length
        pairs = queries * tiles.keys
        real = tiles.rows.real_pairs(h) * tiles.cols.real_pairs(w)
        position, padding = self.branch.position_cost(queries), 2 * (pairs - real) * self.dim
        if self.config.position == "relative":
            padding += self.branch.position_cost(queries - h * w)
        layers = 4 if self.config.proj else 3
        return Cost(layers * h * w * square, 2 * pairs * self.dim, position, padding)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.tiles(h, w).region(query)
