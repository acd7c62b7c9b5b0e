"""Spatial-reduction attention (Pyramid Vision Transformer, section 3.3; PVT v2, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.reduced import SRAConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.reduced import Reduced, pooled, strided
from attention.geometry.symbolic import copied
from attention.mixer import TokenMixer, map_size
from attention.softmax.branch import projection
from attention.softmax.scores import Scores

EPS = 1e-5  # of the keys' norm, whatever the norms of blocks have


@register("sra", config=SRAConfig)
class SpatialReductionMixer(TokenMixer):
    """Every token attends to keys and values on a map that a strided convolution reduces.

    The convolution is a linear layer on the tokens of a cell, since cells do not overlap.  A key
    stands for `ratio` tokens a side; with `pool` the map is averaged to as many keys a side, and
    GELU follows the norm (PVT v2's linear attention).  Keys and values are one linear layer; with
    ratio=1 they are those of the tokens.
    """

    config: SRAConfig

    def __init__(self, config: SRAConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        cosine = config.scores == "cosine"  # then keys have no bias, as in every mixer
        self.q = projection(dim, dim, bias=config.qkv_bias)
        self.kv = projection(dim, 2 * dim, bias=config.qkv_bias and not cosine)
        self.v_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias and cosine else None
        length = 1 if config.pool else config.ratio[0] * config.ratio[1]  # what a key is made of
        self.reduction: nn.Linear | None = None
        self.norm: nn.LayerNorm | None = None
        if config.pool or length > 1:
            self.reduction = projection(length * dim, dim)
            self.norm = nn.LayerNorm(dim, eps=EPS)
        self.scores = Scores(config, dim=dim, heads=heads)
        self.proj = projection(dim, dim)

    def keys(self, h: int, w: int) -> Reduced:
        """The map of the keys of an (h, w) map."""
        sides, pad = (h, w), self.config.remainder == "pad"
        if self.config.pool is not None:
            return Reduced(*map(pooled, sides, self.config.pool))
        return Reduced(
            *(strided(n, r, pad=pad) for n, r in zip(sides, self.config.ratio, strict=True))
        )

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = map_size(x)
        return backend.over_images(self._attend, x, h * w * self.dim * x.element_size())

    def _attend(self, x: Tensor) -> Tensor:
        q = self.q(x)  # (b, h, w, c)
        # copies: in a graph, views of a map that may have one key are views of some sizes only
        k, v = map(copied, self.kv(self._reduced(x)).chunk(2, dim=-1))  # (b, nh, nw, c) each
        if self.v_bias is not None:
            v = v + self.v_bias
        y = self.scores.attend(*(t.flatten(1, 2).unsqueeze(1) for t in (q, k, v)))  # (b, 1, h w, c)
        return self.proj(y.squeeze(1).unflatten(1, map_size(x)))  # (b, h, w, c)

    def _reduced(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, nh, nw, c): what keys and values are projected from."""
        if self.reduction is None or self.norm is None:
            return x
        keys = self.keys(*map_size(x))
        cells = keys.split(x) if self.config.pool is None else keys.mean(x)  # (b, nh, nw, l c)
        y = self.norm(self.reduction(cells))  # (b, nh, nw, c)
        return y if self.config.pool is None else F.gelu(y)

    def cost(self, h: int, w: int) -> Cost:
        keys, square = self.keys(h, w), self.dim * self.dim
        layers = 2 * keys.tokens + 2 * keys.n  # outputs of q and proj, k and v, in tokens
        reduction = padding = 0
        if self.reduction is not None:
            reduction = keys.n * self.reduction.weight.numel()
            padding = keys.pads * square
        return Cost(layers * square + reduction, 2 * keys.pairs * self.dim, 0, padding)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.keys(h, w).region(query)
