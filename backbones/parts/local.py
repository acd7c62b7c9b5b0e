"""A convolution between the mixer and the MLP of a block."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from backbones.parts.layout import nchw, nhwc
from backbones.parts.norm import make_norm
from backbones.specs.spec import BackboneSpec


class Local(nn.Module):
    """x + a depthwise convolution of the normed x: the neighbour-window connection.

    Source: Shuffle Transformer (Huang et al., arXiv 2106.03650), models/shuffle_transformer.py: no
    stochastic depth.  With norm=res_post the norm is on the residual and starts at 0, as those of
    the mixer and the MLP.
    """

    def __init__(self, spec: BackboneSpec, dim: int) -> None:
        super().__init__()
        self.post = spec.norm == "res_post"
        self.norm = make_norm(spec, dim)
        self.conv = nn.Conv2d(dim, dim, spec.local, padding=spec.local // 2, groups=dim)
        if self.post:
            nn.init.zeros_(cast("nn.LayerNorm", self.norm).weight)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to (b, h, w, c); what is outside the map is 0 to the convolution."""
        if self.post:
            return x + self.norm(self._around(x))
        return x + self._around(self.norm(x))

    def _around(self, x: Tensor) -> Tensor:
        return nhwc(self.conv(nchw(x)))  # (b, h, w, c)

    def cost(self, h: int, w: int) -> int:
        return h * w * self.conv.weight.numel()
