"""A block: a token mixer and an MLP on residuals, on the (b, h, w, c) view of a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from attention.cost import Cost
from attention.mixer import TokenMixer, map_size
from backbones.parts.layout import nchw, nhwc
from backbones.parts.local import Local
from backbones.parts.macs import Macs
from backbones.parts.mbconv import MBConv
from backbones.parts.mlp import DropPath, make_mlp
from backbones.parts.norm import make_norm, make_scale
from backbones.parts.tokens import join, part
from backbones.specs.spec import BackboneSpec


class Block(nn.Module):
    """A mixer and an MLP on residuals, (b, h, w, c) to (b, h, w, c).

    norm=pre: x + f(norm(x)).  norm=res_post: x + norm(f(x)), where norms start at 0 (Swin V2,
    section 3.2 and the authors' initialisation).  cpe: x + depthwise 3x3 of x comes first;
    local: x + a depthwise convolution of norm(x) comes between mixer and MLP.

    Args:
        mixer: the token mixer.
        spec: of the backbone: norms, MLP, scales, position and local convolution.
        dim: channels.
        hidden: hidden channels of the MLP.
        drop_path: rate of stochastic depth.
        conv: an inverted bottleneck on the map (b, c, h, w), which comes first.
    """

    def __init__(
        self, mixer: TokenMixer, spec: BackboneSpec, *, dim: int, hidden: int, drop_path: float,
        conv: MBConv | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.post = spec.norm == "res_post"
        self.conv = conv
        cpe = spec.position == "cpe"
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if cpe else None
        self.norm1, self.norm2 = make_norm(spec, dim), make_norm(spec, dim)
        self.mixer: TokenMixer = mixer
        self.local = Local(spec, dim) if spec.local else None
        self.mlp = make_mlp(spec, dim, hidden)
        self.scale1, self.scale2 = make_scale(spec, dim), make_scale(spec, dim)
        self.drop_path = DropPath(drop_path)
        if self.post:
            for norm in (self.norm1, self.norm2):
                nn.init.zeros_(cast("nn.LayerNorm", norm).weight)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Any:
        """Map (b, h, w, c) to (b, h, w, c); with tokens (b, t, c) beside it, both to both."""
        if self.conv is not None:
            x = nhwc(self.conv(nchw(x)))  # (b, h, w, c)
        if self.cpe is not None:
            x = x + nhwc(self.cpe(nchw(x)))  # (b, h, w, c)
        if tokens is None:
            return self._transform(self._between(self._mix(x, self.mixer)))
        size, t = map_size(x), tokens.shape[1]
        if self.mixer.config.takes_tokens:

            def mixer(both: Tensor) -> Tensor:
                return join(*self.mixer(*part(both, size, t)))

            x, tokens = part(self._mix(join(x, tokens), mixer), size, t)
            tokens = self.mixer.exchange(tokens, *size)
        else:
            x = self._mix(x, self.mixer)
        return part(self._transform(join(self._between(x), tokens)), size, t)

    def _mix(self, x: Tensor, mixer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.drop_path(self.scale1(self._residual(x, self.norm1, mixer)))

    def _between(self, x: Tensor) -> Tensor:
        return x if self.local is None else self.local(x)  # (b, h, w, c)

    def _transform(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale2(self._residual(x, self.norm2, self.mlp)))

    def _residual(self, x: Tensor, norm: nn.Module, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(inner(x)) if self.post else inner(norm(x))  # (b, h, w, c)

    def cost(self, h: int, w: int, tokens: int = 0) -> list[Macs]:
        """Multiply-adds of every part for a map of h x w tokens, and `tokens` beside it."""
        taken = (tokens,) if tokens and self.mixer.config.takes_tokens else ()
        mixer: Cost = cast("Any", self.mixer).cost(h, w, *taken)
        parts = [
            Macs("mixer", "projection", mixer.projection),
            Macs("mixer", "mixing", mixer.mixing, mixer.padding),
            Macs("mixer", "position", mixer.position),
            Macs("mlp", "mlp", self.mlp.cost(h, w) + self.mlp.cost(1, tokens)),
        ]
        if self.conv is not None:
            parts.append(Macs("conv", "mlp", self.conv.cost(h, w, before=(h, w))))
        if self.cpe is not None:
            parts.append(Macs("cpe", "position", h * w * self.cpe.weight.numel()))
        if self.local is not None:
            parts.append(Macs("local", "mixing", self.local.cost(h, w)))
        return parts
