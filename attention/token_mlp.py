"""A learned matrix over the tokens of a window (Swin-MLP: swin_mlp.py of the Swin authors)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention import fast
from attention.configs import TokenMLPConfig
from attention.groups import Axis, Groups, axis
from attention.mixer import TokenMixer, map_size
from attention.registry import Cost, register
from attention.sizes import smaller, whole

AXES = "m gh gw b nh nw d"  # one product for all groups of a head


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

    def forward(self, x: Tensor) -> Tensor:
        groups = self.cut(*map_size(x))
        if not fast.applies(x, self):
            return self._mix(x, groups)
        out, (rows, cols) = torch.empty_like(x), groups
        for images, band in fast.parts(x, rows.n, rows.extent * cols.padded, self.dim):
            real, own = rows.part(band)
            out[images, real] = self._mix(x[images, real], Groups(own, cols))
        return out

    def _mix(self, x: Tensor, groups: Groups) -> Tensor:
        tokens = groups.arrange(groups.pad(x), self.heads, AXES)
        mixed = torch.bmm(self.weight, tokens.flatten(3).flatten(1, 2)).add_(self.bias[..., None])
        mixed = mixed.unflatten(2, tokens.shape[3:]).unflatten(1, groups.extent)
        return groups.crop(groups.restore(mixed, AXES))

    def cost(self, h: int, w: int) -> Cost:
        groups = self.cut(h, w)
        pads = (groups.pairs - groups.real_pairs) * self.dim
        return Cost(0, groups.pairs * self.dim, 0, pads)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return self.cut(h, w).region(query)
