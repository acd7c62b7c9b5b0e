"""Spatial-reduction attention (Pyramid Vision Transformer, section 3.3; PVT v2, section 3.1)."""

from __future__ import annotations

from typing import Any

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
    ratio=1 they are those of the tokens.  Tokens beside the map are queries, and keys that no
    convolution reduces.
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

    def run(self, x: Tensor, backend: Reference, *tokens: Tensor) -> Any:
        h, w = map_size(x)
        size = h * w * self.dim * x.element_size()
        return backend.over_images(self._attend, x, *tokens, image_bytes=size)

    def _attend(self, x: Tensor, *tokens: Tensor) -> Any:
        q, kv = self.q(x).flatten(1, 2), self.kv(self._reduced(x))  # (b, h w, c), (b, nh, nw, 2 c)
        # copies: in a graph, views of a map that may have one key are views of some sizes only
        k, v = (copied(t).flatten(1, 2) for t in kv.chunk(2, dim=-1))  # (b, n, c) each
        for beside in tokens:
            own = self.q(beside), *self.kv(beside).chunk(2, dim=-1)  # (b, t, c) each
            q, k, v = (torch.cat(pair, dim=1) for pair in zip(own, (q, k, v), strict=True))
        if self.v_bias is not None:
            v = v + self.v_bias
        y = self.scores.attend(*(t.unsqueeze(1) for t in (q, k, v)))  # (b, 1, t + h w, c)
        y = self.proj(y.squeeze(1))
        if not tokens:
            return y.unflatten(1, map_size(x))  # (b, h, w, c)
        t = tokens[0].shape[1]
        return y[:, t:].unflatten(1, map_size(x)), y[:, :t]

    def _reduced(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, nh, nw, c): what keys and values are projected from."""
        if self.reduction is None or self.norm is None:
            return x
        keys = self.keys(*map_size(x))
        cells = keys.split(x) if self.config.pool is None else keys.mean(x)  # (b, nh, nw, l c)
        y = self.norm(self.reduction(cells))  # (b, nh, nw, c)
        return y if self.config.pool is None else F.gelu(y)

    def cost(self, h: int, w: int, tokens: int = 0) -> Cost:
        keys, square = self.keys(h, w), self.dim * self.dim
        layers = 2 * keys.tokens + 2 * keys.n + 4 * tokens  # of q and proj, k and v, in tokens
        pairs = (keys.tokens + tokens) * (keys.n + tokens)
        reduction = padding = 0
        if self.reduction is not None:
            reduction = keys.n * self.reduction.weight.numel()
            padding = keys.pads * square
        return Cost(layers * square + reduction, 2 * pairs * self.dim, 0, padding)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.keys(h, w).region(query)
