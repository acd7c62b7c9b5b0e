"""A learned matrix over the tokens of a window (Swin-MLP: swin_mlp.py of the Swin authors)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention.catalogue import TokenMLPConfig
from attention.execution.backends import Reference
from attention.geometry.axis import Axis, axis
from attention.geometry.groups import Groups
from attention.geometry.symbolic import copied, smaller, whole
from attention.mixer import TokenMixer, map_size
from attention.registry import Cost, register


def _axis(length: int, extent: int, shift: int) -> Axis:
    """Instead of a cyclic shift, extent - shift zeros come first: one more window, no mask."""
    if not shift:
        return axis(length, extent)
    before = smaller(extent - shift, whole(length, extent) - extent)  # 0 in one window
    return Axis(length, extent, before, whole(before + length, extent), 0, False)


@register("token_mlp", config=TokenMLPConfig)
class TokenMLPMixer(TokenMixer):
    """Every head mixes the l tokens of a window by an (l, l) matrix and a bias per token; there
    are no queries, keys or output projection.  Pads are zeros and add nothing."""

    config: TokenMLPConfig

    def __init__(self, config: TokenMLPConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        length = config.size[0] * config.size[1]
        self.weight = nn.Parameter(torch.empty(heads, length, length))
        self.bias = nn.Parameter(torch.zeros(heads, length))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def cut(self, h: int, w: int) -> Groups:
        gh, gw = self.config.size
        shifted = self.config.shift and self.index % 2
        return Groups(
            _axis(h, gh, gh // 2 if shifted else 0), _axis(w, gw, gw // 2 if shifted else 0)
        )

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.cut(*map_size(x))
        return backend.over_groups(self._mix, groups, x, width=2 * self.dim)

    def _mix(self, part: slice, tokens: Tensor) -> Tensor:
        b, n = tokens.shape[:2]
        d = self.dim // self.heads
        # one product for all groups of a head
        x = tokens.unflatten(3, (self.heads, d)).permute(3, 2, 0, 1, 4)  # m l b n d
        mixed = torch.bmm(self.weight, copied(x).flatten(2)).add_(self.bias[..., None])
        return mixed.unflatten(2, (b, n, d)).permute(2, 3, 1, 0, 4).flatten(3)  # b n l (m d)

    def cost(self, h: int, w: int) -> Cost:
        groups = self.cut(h, w)
        pads = (groups.pairs - groups.real_pairs) * self.dim
        return Cost(0, groups.pairs * self.dim, 0, pads)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.cut(h, w).region(query)
