"""A learned matrix over the tokens of a window (Swin-MLP: swin_mlp.py of the Swin authors), or
two with GELU between them (MLP-Mixer, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.registry import register
from attention.configs.windows import TokenMLPConfig
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.axis import shifted_by_pads
from attention.geometry.groups import Groups
from attention.geometry.symbolic import copied
from attention.mixer import TokenMixer, map_size


@register("token_mlp", config=TokenMLPConfig)
class TokenMLPMixer(TokenMixer):
    """Linear mixing of the l tokens of a window, by an (l, l) matrix and a bias for every head.

    There are no queries, keys or output projection.  Pads are zeros and add nothing.  With
    `hidden` the matrices are (hidden, l) and (l, hidden).
    """

    config: TokenMLPConfig

    def __init__(self, config: TokenMLPConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        length = config.size[0] * config.size[1]
        first = config.hidden or length
        self.weight = nn.Parameter(torch.empty(heads, first, length))
        self.bias = nn.Parameter(torch.zeros(heads, first))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.weight2: nn.Parameter | None = None
        self.bias2: nn.Parameter | None = None
        if config.hidden is not None:
            self.weight2 = nn.Parameter(torch.empty(heads, length, first))
            self.bias2 = nn.Parameter(torch.zeros(heads, length))
            nn.init.trunc_normal_(self.weight2, std=0.02)

    def groups(self, h: int, w: int) -> Groups:
        """The groups of an (h, w) map."""
        gh, gw = self.config.size
        shifted = self.config.shift and self.index % 2
        rows, columns = (
            shifted_by_pads(length, extent, extent // 2 if shifted else 0)
            for length, extent in ((h, gh), (w, gw))
        )
        return Groups(rows, columns)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.groups(*map_size(x))
        return backend.over_groups(self._mix, groups, x, width=2 * self.dim)  # (b, h, w, c)

    def _mix(self, part: slice, tokens: Tensor) -> Tensor:
        b, n = tokens.shape[:2]  # (b, n, l, c)
        d = self.dim // self.heads
        # all groups of a head in one product
        x = tokens.unflatten(3, (self.heads, d)).permute(3, 2, 0, 1, 4)  # (m, l, b, n, d)
        mixed = torch.bmm(self.weight, copied(x).flatten(2))  # (m, l or hidden, b * n * d)
        mixed = mixed.add_(self.bias[..., None])
        if self.weight2 is not None and self.bias2 is not None:
            mixed = torch.bmm(self.weight2, F.gelu(mixed))  # (m, l, b * n * d)
            mixed = mixed.add_(self.bias2[..., None])
        return mixed.unflatten(2, (b, n, d)).permute(2, 3, 1, 0, 4).flatten(3)  # (b, n, l, c)

    def cost(self, h: int, w: int) -> Cost:
        groups = self.groups(h, w)
        if self.config.hidden is not None:
            width = 2 * self.config.hidden * self.dim
            pads = (groups.tokens - groups.real_tokens) * width
            return Cost(0, groups.tokens * width, 0, pads)
        pads = (groups.pairs - groups.real_pairs) * self.dim
        return Cost(0, groups.pairs * self.dim, 0, pads)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.groups(h, w).region(query)
