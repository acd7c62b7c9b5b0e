"""Attention inside the groups of one branch: scores, positions and mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.softmax import SoftmaxConfig
from attention.cost import Cost
from attention.execution.cache import cached
from attention.geometry.groups import Groups
from attention.softmax.dpb import DynamicBias
from attention.softmax.position import LePE, LogCPB, RelativeBias
from attention.softmax.scores import Scores


def projection(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer as the papers initialise it."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Branch(Scores):
    """softmax(q k^T * scale + bias + mask) v inside every group, plus LePE of v.

    Args:
        config: the mixer's configuration, with its scores and position.
        dim, heads: channels and heads of this branch.
        extent: (gh, gw) of the groups, for position=bias.
    """

    config: SoftmaxConfig

    def __init__(
        self, config: SoftmaxConfig, *, dim: int, heads: int,
        extent: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, dim=dim, heads=heads)
        self.bias: RelativeBias | LogCPB | DynamicBias | None = None
        self.lepe: LePE | None = None
        if config.position == "bias":
            assert extent is not None
            self.bias = RelativeBias(heads, extent)
        elif config.position == "log_cpb":
            self.bias = LogCPB(heads, config.pretrained_window)
        elif config.position == "dpb":
            self.bias = DynamicBias(heads, dim)
        elif config.position == "lepe":
            self.lepe = LePE(dim)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, groups: Groups, part: slice = slice(None)
    ) -> Tensor:  # fmt: skip
        """
        Args:
            q, k, v: (b, n, l, dim), the tokens of the groups `part`, of any strides.
            groups: the partition of the map; pads are masked if the config says so.

        Returns:
            (b, n, l, dim).
        """
        if self.lepe is not None and self.masks_padding(groups):
            # pads are no neighbours of the convolution, either
            v = v * groups.partition(self.real_tokens(groups, v))[:, part]  # (b, n, l, dim)
        y = self.attend(q, k, v, self.mask(groups, q, part))  # (b, n, l, dim)
        return y if self.lepe is None else y + self.lepe(v, groups)

    def with_tokens(
        self, qkv: tuple[Tensor, ...], groups: Groups, tokens: int, bias: Tensor | None = None
    ) -> Tensor:
        """Attention inside groups that have `tokens` tokens beside the map, which stand first.

        Positions are those of the map: no term is added to the pairs of the others but `bias`.

        Args:
            qkv: queries, keys and values, (b, n, tokens + l, dim) each, of all groups.
            groups: the partition of the map.
            tokens: of each group.
            bias: (heads, 2), added to the scores of these tokens as keys of the map, and as
                queries; none: zeros.

        Returns:
            (b, n, tokens + l, dim).
        """
        q, k, v = qkv
        mask = self.mask(groups, q)
        if mask is not None:
            mask = F.pad(mask, (tokens, 0, tokens, 0))  # (n or 1, m or 1, tokens + l, tokens + l)
        if bias is not None:
            beside = torch.arange(q.shape[2], device=q.device) < tokens  # (tokens + l,)
            as_keys, as_queries = bias.to(q.dtype)[..., None, None].unbind(1)  # (m, 1, 1) each
            added = torch.where(beside[:, None], as_queries, as_keys * beside)
            mask = added[None] if mask is None else mask + added
        y = self.attend(q, k, v, mask)  # (b, n, tokens + l, dim)
        if self.lepe is None:
            return y
        positions = self.lepe(v[:, :, tokens:], groups)  # (b, n, l, dim)
        return y + F.pad(positions, (0, 0, tokens, 0))

    def by_kernel(self, q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
        """The branch's attention by the GPU kernel.

        Args:
            q, k, v: (b, hp, wp, dim), the padded map, not rolled.

        Returns:
            (b, hp, wp, dim).
        """
        from attention.kernels import fused

        if self.lepe is not None and self.masks_padding(groups):
            v = v * groups.pad(self.real_tokens(groups, v))
        out = fused.attend(
            q, k, v, groups, heads=self.heads, scale=self.scale,
            mask_padding=self.masks_padding(groups),
            bias=None if self.bias is None else self.bias(groups).to(q.dtype),
            logit_scale=None if self.logit_scale is None else self.clamped_logit_scale(q).flatten(),
            mask_value=self.config.mask_value,
        )  # fmt: skip
        if self.lepe is not None:
            positions = self.lepe(groups.split(groups.roll(v)), groups)  # (b, n, l, dim)
            out = out + groups.unroll(groups.merge(positions))
        return out

    # -- the mask ------------------------------------------------------------------------

    def masks_padding(self, groups: Groups) -> bool:
        """True if this map has pads and they are masked as keys of the real tokens."""
        return self.config.mask_padding and groups.padded

    @staticmethod
    def real_tokens(groups: Groups, like: Tensor) -> Tensor:
        """(1, h, w, 1): a 1 for every real token; padding adds zeros."""
        return like.new_ones(1, groups.rows.length, groups.cols.length, 1)

    def mask(self, groups: Groups, like: Tensor, part: slice = slice(None)) -> Tensor | None:
        """The term added to the scores of the groups `part`: bias, and -inf for masked pairs.

        No query is masked from itself, so that no row of scores is empty.

        Returns:
            (n or 1, m or 1, l, l), 1 where groups or heads share it; None for no term.
        """
        if part != slice(None):
            return self._mask(groups, like, part)
        key = "mask", groups, like.dtype, like.device
        return cached(key, lambda: self._mask(groups, like, part), owner=self)

    def _mask(self, groups: Groups, like: Tensor, part: slice) -> Tensor | None:
        device = like.device
        separated = cached(("separated", groups, device), lambda: groups.separated(device))
        pads = None
        if self.masks_padding(groups):
            pads = cached(("pads", groups, device), lambda: groups.pads(device))
        if self.bias is None and separated is None and pads is None:
            return None
        length = groups.rows.extent * groups.cols.extent
        mask = like.new_zeros(1, 1, length, length)
        if self.bias is not None:
            mask = self.bias(groups).to(like.dtype)[None]  # (1, m, l, l)
        if separated is not None:
            separated, value = separated[part, None], self.config.mask_value  # (n, 1, l, l)
            added = like.new_zeros(separated.shape)
            mask = mask + added.masked_fill(separated, -math.inf if value is None else value)
        if pads is not None:
            pads = pads[part, None]  # (n, 1, l, l)
            mask = mask.expand(pads.shape[0], -1, -1, -1).masked_fill(pads, -math.inf)
        return mask

    def cost(self, groups: Groups, tokens: int = 0) -> Cost:
        """The MACs of this branch on one image: mixing, position, and those spent on pads.

        tokens: of each group, beside those of the map.
        """
        beside = 2 * groups.tokens * tokens + groups.n * tokens * tokens  # pairs
        mixing, position = 2 * (groups.pairs + beside) * self.dim, 0
        pads = groups.tokens - groups.real_tokens
        padding = 2 * (groups.pairs - groups.real_pairs + 2 * pads * tokens) * self.dim
        if self.bias is not None:
            position += self.bias.cost(groups)
        if self.lepe is not None:
            position += self.lepe.cost(groups, groups.tokens)
            padding += self.lepe.cost(groups, pads)
        return Cost(0, mixing, position, padding)
