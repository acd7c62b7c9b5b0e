"""Softmax attention inside groups, and the two walks that lead there.

`PadFirst`      pad, roll, project, attend, project, roll back, crop   (window, cosine, shuffle)
`ProjectFirst`  project, then each branch: pad, attend, crop; project  (axial, cross, full)

A leaf says only how it cuts a map: one `Groups` per branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import fast, fused, learning
from attention.configs import SoftmaxConfig
from attention.folding import Keeper
from attention.groups import Groups, copied
from attention.mixer import TokenMixer, map_size
from attention.position import LePE, LogCPB, RelativeBias, cosine_normalize, cosine_normalize_
from attention.registry import Cost


class QKV(nn.Module):
    """Queries, keys and values of every token: (..., c) -> three (..., c).

    Cosine scores have no key bias (Swin V2's code): it would not be a constant of the softmax
    there, and the published weights were trained without.
    """

    def __init__(self, dim: int, *, bias: bool, key_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * dim, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(3 * dim)) if bias and key_bias else None
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias and not key_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias and not key_bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, self.weight, self.whole_bias()).chunk(3, dim=-1)

    def whole_bias(self) -> Tensor | None:
        if self.q_bias is not None and self.v_bias is not None:
            return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.bias


def projection(dim: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Branch(Keeper):
    """Attention inside the groups of one branch: its scores and its positions.

    extent: the stated (gh, gw) of its groups, for position=bias.
    """

    def __init__(
        self, config: SoftmaxConfig, *, dim: int, heads: int,
        extent: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.scale = config.qk_scale if config.qk_scale is not None else (dim // heads) ** -0.5
        self.logit_scale: nn.Parameter | None = None
        if config.scores == "cosine":
            self.scale = 1.0
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.bias: RelativeBias | LogCPB | None = None
        self.lepe: LePE | None = None
        if config.position == "bias":
            assert extent is not None
            self.bias = RelativeBias(heads, extent)
        elif config.position == "log_cpb":
            self.bias = LogCPB(heads, config.pretrained_window)
        elif config.position == "lepe":
            self.lepe = LePE(dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
        """q, k, v and the result: the padded and rolled map (b, hp, wp, dim)."""
        if not groups.shifted and fused.chosen(q, groups, self, heads=self.heads):
            return self.by_kernel(q, k, v, groups)
        hidden = self.hides(groups)
        if hidden and self.lepe is not None:
            v = groups.pad(groups.crop(v))  # what is hidden is not a neighbour either
        q, k, v = (groups.split(t, self.heads) for t in (q, k, v))
        if self.logit_scale is not None:
            q = cosine_normalize(q) * self.learned_scale(q).repeat(groups.n, 1, 1)
            k = cosine_normalize(k)
        mask = self.whole_mask(groups, q, hidden=hidden)
        if mask is not None:
            mask = copied(mask.expand(groups.n, self.heads, -1, -1)).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        if self.lepe is not None:
            out = out + self.lepe(v, groups, self.heads)
        return groups.merge(out, self.heads)

    def by_kernel(self, q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
        """`forward` by the GPU kernel: q, k, v and the result are padded, but not rolled."""
        hidden = self.hides(groups)
        if hidden and self.lepe is not None:
            v = groups.pad(groups.crop(v))
        out = fused.attend(
            q, k, v, groups, heads=self.heads, scale=self.scale, hidden=hidden,
            bias=None if self.bias is None else self.bias(groups).to(q.dtype),
            gain=None if self.logit_scale is None else self.learned_scale(q).flatten(),
            mask_value=getattr(self.config, "mask_value", None),
        )  # fmt: skip
        if self.lepe is not None:
            own = self.lepe(groups.split(v, self.heads), groups, self.heads)
            out = out + groups.merge(own, self.heads)
        return out

    def inside(
        self, q: Tensor, k: Tensor, v: Tensor, groups: Groups, mask: Tensor | None
    ) -> Tensor:
        """The same on tokens that stand group by group, in any strides: (rows, l, heads, d) to
        (rows, l, dim), where rows are whole images of masked groups, or any number that share
        one mask.  Writes over cosine queries and keys."""
        if self.logit_scale is not None:
            cosine_normalize_(q, self.learned_scale(q)[:, 0])
            cosine_normalize_(k)
        out = fast.attend(q, k, v, mask, self.scale).flatten(2)
        return out if self.lepe is None else out + self.lepe.inside(v.transpose(1, 2), groups)

    def learn(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, l, 3, heads, d) -> (rows, l, dim), with gradients."""
        if self.logit_scale is not None:
            q, k, v = qkv.unbind(2)
            q = cosine_normalize(q) * self.learned_scale(q)[:, 0]
            qkv = torch.stack([q, cosine_normalize(k), v], dim=2)
        return learning.attend(qkv, mask, self.scale)

    def hides(self, groups: Groups) -> bool:
        """Are pads hidden from the real tokens of this map?"""
        return getattr(self.config, "mask_padding", False) and groups.padded

    def masks(self, groups: Groups, like: Tensor) -> Callable[[slice], Tensor | None]:
        """`mask` for some of the groups: sliced from one, or where that would outgrow the
        tokens, made as it is asked for."""
        hidden = self.hides(groups)
        several = hidden or groups.shifted
        pairs = groups.pairs * groups.rows.extent * groups.cols.extent // groups.tokens
        if several and pairs * self.heads * like.element_size() > fast.MASKS:
            return lambda part: self.mask(groups, like, hidden=hidden, part=part)
        whole = self.whole_mask(groups, like, hidden=hidden)
        return lambda part: whole if whole is None or len(whole) == 1 else whole[part]

    def whole_mask(self, groups: Groups, like: Tensor, *, hidden: bool) -> Tensor | None:
        """`mask` of all groups, made once."""
        key = "mask", groups, self.config, hidden, like.dtype, like.device
        sources = () if self.bias is None else self.bias.parameters()
        return self.once(key, lambda: self.mask(groups, like, hidden=hidden), *sources)

    def learned_scale(self, like: Tensor) -> Tensor:
        """(heads, 1, 1): the clamped scale of cosine scores (Swin V2, section 3.2)."""
        assert self.logit_scale is not None
        return self.logit_scale.clamp(max=math.log(100)).exp().to(like.dtype)

    def mask(
        self, groups: Groups, like: Tensor, *, hidden: bool, part: slice = slice(None)
    ) -> Tensor | None:
        """(n, m, l, l) to add to the scores of these groups, with 1 for n and m where all share
        it; None for nothing.  The positions' bias, -inf where two tokens may not meet.  A query
        always sees itself, so no row is empty."""
        device = like.device
        parted = fast.remember(("parted", groups, device), lambda: groups.parted(device))
        pads = groups.pads(like.device) if hidden else None
        if self.bias is None and parted is None and pads is None:
            return None
        length = groups.rows.extent * groups.cols.extent
        mask = like.new_zeros(1, 1, length, length)
        if self.bias is not None:
            mask = self.bias(groups).to(like.dtype)[None]
        if parted is not None:
            parted, value = parted[part, None], getattr(self.config, "mask_value", None)
            added = like.new_zeros(parted.shape)
            mask = mask + added.masked_fill(parted, -math.inf if value is None else value)
        if pads is not None:
            pads = pads[part, None]
            mask = mask.expand(pads.shape[0], -1, -1, -1).masked_fill(pads, -math.inf)
        return mask

    def cost(self, groups: Groups) -> Cost:
        """What this branch does on one image: mixing, position, and their share of pads."""
        mixing, padding, position = 2 * groups.pairs * self.dim, 0, 0
        padding = 2 * (groups.pairs - groups.real_pairs) * self.dim
        if self.bias is not None:
            position += self.bias.cost(groups)
        if self.lepe is not None:
            position += self.lepe.cost(groups, groups.tokens)
            padding += self.lepe.cost(groups, groups.tokens - groups.real_tokens)
        return Cost(0, mixing, position, padding)


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
            if not fast.learns(x, self):
                return self._fast(x, groups)
            if self.branch.lepe is None:
                return self._learn(x, groups)
        if fused.chosen(x, groups, self, heads=self.branch.heads):
            q, k, v = self.qkv(groups.pad(x))
            return groups.crop(self.proj(self.branch.by_kernel(q, k, v, groups)))
        q, k, v = self.qkv(groups.roll(groups.pad(x)))
        y = self.proj(self.branch(q, k, v, groups))
        return groups.crop(groups.unroll(y))

    def _fast(self, x: Tensor, groups: Groups) -> Tensor:
        order = self.order(groups, x.device)
        masks, bias = self.branch.masks(groups, x), self.qkv.whole_bias()
        inner, outer = self.packed("qkv", self.qkv.weight), self.packed("proj", self.proj.weight)
        tokens, out = x.flatten(1, 2), x.new_empty(len(x), groups.tokens, self.dim)
        for images, part, places in order.parts(x, 3 * self.dim):
            y = fast.linear(order.take(tokens[images], places), inner, bias)
            q, k, v = order.grouped(y, self.heads)
            if self.branch.lepe is not None and self.branch.hides(groups):
                order.clear(v, places)
            y = self.branch.inside(q, k, v, groups, masks(part))
            y = fast.linear(y, outer, self.proj.bias)
            out[images, places] = y.view(-1, places.stop - places.start, self.dim)
        return order.back(out).view(x.shape)

    def _learn(self, x: Tensor, groups: Groups) -> Tensor:
        """With gradients: the same permutations and products, and no scores kept."""
        inward, outward = groups.order(x.device)
        y = learning.permute(x.flatten(1, 2), inward, outward)
        y = learning.linear(y, self.qkv.weight, self.qkv.whole_bias())
        mask = self.branch.mask(groups, x, hidden=self.branch.hides(groups))
        length = groups.tokens // groups.n
        y = self.branch.learn(y.view(-1, length, 3, self.heads, self.dim // self.heads), mask)
        y = y.reshape(len(x), -1, self.dim)
        y = learning.linear(y, self.proj.weight, self.proj.bias)
        return learning.permute(y, outward, inward).view(x.shape)

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
        if fast.applies(x, self, self.proj):
            return self._fast(x, cuts)
        qkv = [t.chunk(len(cuts), dim=-1) for t in self.qkv(x)]
        out = []
        for branch, groups, *parts in zip(self.branches, cuts, *qkv, strict=True):
            q, k, v = (groups.pad(part) for part in parts)
            out.append(groups.crop(branch(q, k, v, groups)))
        return self.proj(torch.cat(out, dim=-1))

    def _fast(self, x: Tensor, cuts: tuple[Groups, ...]) -> Tensor:
        tokens, out = x.flatten(1, 2), x.new_empty(len(x), x.shape[1] * x.shape[2], self.dim)
        bias = self.qkv.whole_bias()
        width = self.dim // len(cuts)
        branches = cast("list[Branch]", self.branches)
        for i, (branch, groups) in enumerate(zip(branches, cuts, strict=True)):
            own = slice(i * width, (i + 1) * width)
            weight = self.once(("qkv", i), partial(self._weight, own), self.qkv.weight)
            own_bias = None if bias is None else bias.unflatten(0, (3, -1))[:, own].flatten()
            order, masks = self.order(groups, x.device), branch.masks(groups, x)
            result = x.new_empty(len(x), groups.tokens, width)
            for images, part, places in order.parts(x, 3 * width):
                y = fast.linear(order.take(tokens[images], places), weight, own_bias)
                q, k, v = order.grouped(order.clear(y, places), branch.heads)
                y = branch.inside(q, k, v, groups, masks(part))
                result[images, places] = y.view(-1, places.stop - places.start, width)
            out[:, :, own] = order.back(result)
        outer = self.packed("proj", self.proj.weight)
        return fast.linear(out, outer, self.proj.bias).view(x.shape)

    def _weight(self, own: slice) -> Tensor:
        """Of the queries, keys and values of one branch's channels."""
        weight = self.qkv.weight.unflatten(0, (3, -1))[:, own].flatten(0, 1)
        return weight if self.kept is None else fast.pack(weight)

    def cost(self, h: int, w: int) -> Cost:
        projections = Cost(4 * h * w * self.dim * self.dim, 0)
        branches = cast("list[Branch]", self.branches)
        costs = (b.cost(groups) for b, groups in zip(branches, self.cuts(h, w), strict=True))
        return add_costs(projections, *costs)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return reduce(torch.logical_or, (cut.region(query) for cut in self.cuts(h, w)))
