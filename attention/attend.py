"""The two walks that lead a map to softmax attention inside groups.

`PadFirst`      pad, roll, project, attend, project, roll back, crop   (window, cosine, shuffle)
`ProjectFirst`  project, then each branch: pad, attend, crop; project  (axial, cross, full)

A leaf says only how it cuts a map: one `Groups` per branch.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import cast

import torch
from torch import Tensor, nn

from attention import fast, fused, learning, products
from attention.branch import QKV, Branch, projection
from attention.configs import SoftmaxConfig
from attention.groups import Groups
from attention.mixer import TokenMixer, map_size
from attention.registry import Cost


def add_costs(*costs: Cost) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


class PadFirst(TokenMixer):
    """One branch on the padded map: pads become keys and values that are the projection's bias."""

    config: SoftmaxConfig

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.qkv = QKV(dim, bias=config.qkv_bias, key_bias=config.scores == "dot")
        self.branch = Branch(config, dim=dim, heads=heads, extent=self.cut(1, 1).extent)
        self.proj = projection(dim)

    def cut(self, h: int, w: int) -> Groups:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        groups = self.cut(*map_size(x))
        if fast.unseen(x, self, self.proj):
            return self._learn(x, groups) if fast.learns(x, self) else self._fast(x, groups)
        heads = self.branch.heads
        return fused.attends(self, groups, x, heads=heads, kernel=self._fused, usual=self._plain)

    def _plain(self, x: Tensor, groups: Groups) -> Tensor:
        q, k, v = self.qkv(groups.roll(groups.pad(x)))
        y = self.proj(self.branch(q, k, v, groups))
        return groups.crop(groups.unroll(y))

    def _fused(self, x: Tensor, groups: Groups) -> Tensor:
        q, k, v = self.qkv(groups.pad(x))
        return groups.crop(self.proj(self.branch.by_kernel(q, k, v, groups)))

    def _fast(self, x: Tensor, groups: Groups) -> Tensor:
        order = self.order(groups, x.device)
        masks, bias = self.branch.masks(groups, x), self.qkv.whole_bias()
        inner, outer = self.packed("qkv", self.qkv.weight), self.packed("proj", self.proj.weight)
        tokens = x.flatten(1, 2).contiguous()

        def run(images: slice, part: slice, places: slice) -> Tensor:
            y = products.linear(order.take(tokens[images], places), inner, bias)
            q, k, v = order.grouped(y, self.heads)
            if self.branch.lepe is not None and self.branch.hides(groups):
                order.clear(v, places)
            y = self.branch.inside(q, k, v, groups, masks(part))
            return products.linear(y, outer, self.proj.bias)

        return order.over(x, 3 * self.dim, run).view(x.shape)

    def _learn(self, x: Tensor, groups: Groups) -> Tensor:
        """With gradients: the same permutations and products, and no scores kept."""
        inward, outward = learning.moves(groups, x.device)
        y = learning.linear(inward(x), self.qkv.weight, self.qkv.whole_bias())
        y = self.branch.learn(y, groups)
        y = learning.linear(y, self.proj.weight, self.proj.bias)
        return outward(y)

    def cost(self, h: int, w: int) -> Cost:
        groups = self.cut(h, w)
        pads = groups.tokens - groups.real_tokens
        square = self.dim * self.dim
        projections = Cost(4 * groups.tokens * square, 0, 0, 4 * pads * square)
        return add_costs(projections, self.branch.cost(groups))

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.cut(h, w).region(query)


class ProjectFirst(TokenMixer):
    """Branches that share one projection of the real map, each with an equal part of the
    channels and heads; pads are keys and values that are 0."""

    config: SoftmaxConfig

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        n = len(self.cuts(1, 1))
        self.qkv = QKV(dim, bias=config.qkv_bias, key_bias=config.scores == "dot")
        self.branches = nn.ModuleList(
            Branch(config, dim=dim // n, heads=heads // n) for _ in range(n)
        )
        self.proj = projection(dim)

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        cuts = self.cuts(*map_size(x))
        if fast.unseen(x, self, self.proj):
            return self._learn(x, cuts) if fast.learns(x, self) else self._fast(x, cuts)
        qkv = [t.chunk(len(cuts), dim=-1) for t in self.qkv(x)]
        out = []
        for branch, groups, *parts in zip(self.branches, cuts, *qkv, strict=True):
            q, k, v = (groups.pad(part) for part in parts)
            out.append(groups.crop(branch.attend(q, k, v, groups)))
        return self.proj(torch.cat(out, dim=-1))

    def _fast(self, x: Tensor, cuts: tuple[Groups, ...]) -> Tensor:
        out = [self._alone(x, i, groups) for i, groups in enumerate(cuts)]
        y, outer = torch.cat(out, dim=-1), self.packed("proj", self.proj.weight)
        return products.linear(y, outer, self.proj.bias).view(x.shape)

    def _alone(self, x: Tensor, i: int, groups: Groups) -> Tensor:
        """One branch, from its own part of the projection to its channels: (b, h * w, c)."""
        branch, tokens = cast(Branch, self.branches[i]), x.flatten(1, 2).contiguous()
        own = slice(i * branch.dim, (i + 1) * branch.dim)
        weight = self.once(("qkv", i), partial(self._weight, own), self.qkv.weight)
        bias = self.qkv.whole_bias()
        own_bias = None if bias is None else bias.unflatten(0, (3, -1))[:, own].flatten()
        order, masks = self.order(groups, x.device), branch.masks(groups, x)

        def run(images: slice, part: slice, places: slice) -> Tensor:
            y = products.linear(order.take(tokens[images], places), weight, own_bias)
            q, k, v = order.grouped(order.clear(y, places), branch.heads)
            return branch.inside(q, k, v, groups, masks(part))

        return order.over(x, 3 * branch.dim, run)

    def _learn(self, x: Tensor, cuts: tuple[Groups, ...]) -> Tensor:
        y = learning.linear(x, self.qkv.weight, self.qkv.whole_bias())
        parts = y.unflatten(3, (3, len(cuts), -1)).unbind(4)
        branches = cast("list[Branch]", self.branches)
        own = zip(branches, parts, cuts, strict=True)
        out = [branch.learn_apart(qkv, groups, groups) for branch, qkv, groups in own]
        return learning.linear(torch.cat(out, dim=-1), self.proj.weight, self.proj.bias)

    def _weight(self, own: slice) -> Tensor:
        """Of the queries, keys and values of one branch's channels."""
        weight = self.qkv.weight.unflatten(0, (3, -1))[:, own].flatten(0, 1)
        return weight if self.kept is None else products.pack(weight)

    def cost(self, h: int, w: int) -> Cost:
        projections = Cost(4 * h * w * self.dim * self.dim, 0)
        branches = cast("list[Branch]", self.branches)
        costs = (b.cost(groups) for b, groups in zip(branches, self.cuts(h, w), strict=True))
        return add_costs(projections, *costs)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return reduce(torch.logical_or, (cut.region(query) for cut in self.cuts(h, w)))
