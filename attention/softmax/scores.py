"""Scores of queries and keys, and the attention that follows from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attention.configs.softmax import ScoresConfig
from attention.softmax.grouped_attention import GroupedAttention
from attention.softmax.position import cosine_normalize


class Scores(nn.Module):
    """softmax(q k^T * scale + mask) v, with dot products or cosines, of any queries and keys.

    Args:
        config: the mixer's configuration, with its scores.
        dim, heads: channels and heads.
    """

    def __init__(self, config: ScoresConfig, *, dim: int, heads: int) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.scale = config.qk_scale if config.qk_scale is not None else (dim // heads) ** -0.5
        self.logit_scale: nn.Parameter | None = None
        if config.scores == "cosine":
            self.scale = 1.0
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.attention = GroupedAttention()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            q: (b, n, l, dim), the queries of n groups, of any strides.
            k, v: (b, n, keys, dim), the keys and values of each group.
            mask: (n or 1, heads or 1, l, keys), added to the scores; None for no term.

        Returns:
            (b, n, l, dim).
        """
        heads = self.heads, self.dim // self.heads
        q, k, v = (t.unflatten(-1, heads) for t in (q, k, v))  # (b, n, l or keys, m, d)
        if self.logit_scale is not None:
            q, k = cosine_normalize(q, self.clamped_logit_scale(q)[:, 0]), cosine_normalize(k)
        y: Tensor = self.attention(q, k, v, mask, self.scale)
        return y  # (b, n, l, dim)

    def clamped_logit_scale(self, like: Tensor) -> Tensor:
        """(heads, 1, 1): the scale of cosine scores, at most 100 (Swin V2, section 3.2)."""
        assert self.logit_scale is not None
        return self.logit_scale.clamp(max=math.log(100)).exp().to(like.dtype)
