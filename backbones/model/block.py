"""A block: a token mixer and an MLP on residuals, on the (b, h, w, c) view of a map."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from attention.mixer import TokenMixer
from backbones.parts.layout import nchw, nhwc
from backbones.parts.macs import Macs
from backbones.parts.mlp import DropPath, make_mlp
from backbones.parts.norm import make_norm, make_scale
from backbones.specs.spec import BackboneSpec


class Block(nn.Module):
    """A mixer and an MLP on residuals, (b, h, w, c) to (b, h, w, c).

    norm=pre: x + f(norm(x)).  norm=res_post: x + norm(f(x)), where norms start at 0 (Swin V2,
    section 3.2 and the authors' initialisation).  cpe: x + depthwise 3x3 of x comes first.

    Args:
        mixer: the token mixer.
        spec: of the backbone: norms, MLP, scales and position.
        dim: channels.
        hidden: hidden channels of the MLP.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, mixer: TokenMixer, spec: BackboneSpec, *, dim: int, hidden: int, drop_path: float
    ) -> None:
        super().__init__()
        self.post = spec.norm == "res_post"
        cpe = spec.position == "cpe"
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if cpe else None
        self.norm1, self.norm2 = make_norm(spec, dim), make_norm(spec, dim)
        self.mixer: TokenMixer = mixer
        self.mlp = make_mlp(spec, dim, hidden)
        self.scale1, self.scale2 = make_scale(spec, dim), make_scale(spec, dim)
        self.drop_path = DropPath(drop_path)
        if self.post:
            for norm in (self.norm1, self.norm2):
                nn.init.zeros_(cast("nn.LayerNorm", norm).weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.cpe is not None:
            x = x + nhwc(self.cpe(nchw(x)))  # (b, h, w, c)
        x = x + self.drop_path(self.scale1(self._residual(x, self.norm1, self.mixer)))
        return x + self.drop_path(self.scale2(self._residual(x, self.norm2, self.mlp)))

    def _residual(self, x: Tensor, norm: nn.Module, inner: nn.Module) -> Tensor:
        return norm(inner(x)) if self.post else inner(norm(x))  # (b, h, w, c)

    def cost(self, h: int, w: int) -> list[Macs]:
        mixer = self.mixer.cost(h, w)
        parts = [
            Macs("mixer", "projection", mixer.projection),
            Macs("mixer", "mixing", mixer.mixing, mixer.padding),
            Macs("mixer", "position", mixer.position),
            Macs("mlp", "mlp", self.mlp.cost(h, w)),
        ]
        if self.cpe is not None:
            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))
        return parts
