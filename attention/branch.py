"""Softmax attention inside the groups of one branch, on each of its paths.

`forward` says it step by step on a map; `by_kernel` is the same on a GPU, `inside` on tokens that
stand group by group already, and `learn` that with gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import fast, fused, learning, scores
from attention.configs import SoftmaxConfig
from attention.folding import Keeper
from attention.groups import Groups
from attention.position import LePE, LogCPB, RelativeBias, cosine_normalize, cosine_normalize_
from attention.registry import Cost
from attention.sizes import copied, known


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
        hidden = self.hides(groups)
        if hidden and self.lepe is not None:
            v = groups.pad(groups.crop(v))  # what is hidden is not a neighbour either
        q, k, v = (groups.split(t, self.heads) for t in (q, k, v))
        if self.logit_scale is not None:
            q = cosine_normalize(q, self.learned_scale(q).repeat(groups.n, 1, 1))
            k = cosine_normalize(k)
        mask = self.whole_mask(groups, q, hidden=hidden)
        if mask is not None:
            mask = copied(mask.expand(groups.n, self.heads, -1, -1)).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        if self.lepe is not None:
            out = out + self.lepe(v, groups, self.heads)
        return groups.merge(out, self.heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
        """`forward`, or on a GPU the kernel, of groups that are not shifted."""
        return fused.attends(
            self, groups, q, k, v, heads=self.heads, kernel=self.by_kernel, usual=self
        )

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

    def learn(self, qkv: Tensor, groups: Groups) -> Tensor:
        """`inside` with gradients: (b, groups and tokens, 3 * dim) -> (b, the same, dim)."""
        length = groups.tokens // groups.n
        own = qkv.reshape(-1, length, 3, self.heads, self.dim // self.heads)
        mask = self.mask(groups, qkv, hidden=self.hides(groups))
        gain = None if self.logit_scale is None else self.learned_scale(own).flatten()
        out = scores.attend(own, mask, self.scale, gain)
        if self.lepe is not None:
            v = own[:, :, 2]
            if self.hides(groups):  # what is hidden is not a neighbour either
                real = groups.inward(v.new_ones(1, groups.rows.length, groups.cols.length, 1))
                v = v.unflatten(0, (-1, groups.n)) * real.view(groups.n, length, 1, 1)
                v = v.flatten(0, 1)
            out = out + self.lepe.inside(v.transpose(1, 2), groups)
        return out.reshape(*qkv.shape[:2], self.dim)

    def learn_apart(self, qkv: Tensor, groups: Groups, cut: Groups) -> Tensor:
        """The same on a map: (b, h, w, 3, dim) -> (b, h, w, dim).  `cut` is of this map, on
        which the pads of `groups` may stand already; its own are zeros."""
        tokens = qkv.flatten(3)
        if known(cut.n == 1) and not cut.padded:
            return self.learn(tokens.flatten(1, 2), groups).unflatten(1, tokens.shape[1:3])
        inward, outward = learning.moves(cut, qkv.device)
        return outward(self.learn(inward(tokens), groups))

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
