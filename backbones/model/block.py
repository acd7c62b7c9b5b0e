"""A block: a token mixer and an MLP on residuals, on the (b, h, w, c) view of a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.execution import backends
from attention.mixer import TokenMixer
from attention.softmax.branch import projection as linear
from backbones.model.cost import Macs
from backbones.model.layout import nchw, nhwc


class MLP(nn.Module):
    """Two linear layers with GELU between them, (..., dim) to (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return backends.current().over_rows(self._body, x, self.fc1.out_features)  # (..., dim)

    def _body(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))  # (..., hidden)
        return self.fc2(x)  # (..., dim)

    def cost(self, h: int, w: int) -> int:
        return h * w * (self.fc1.weight.numel() + self.fc2.weight.numel())


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops an image's residual at this rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate  # (b, 1, 1, 1)
        return x * keep.to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


class Block(nn.Module):
    """A mixer and an MLP on residuals, (b, h, w, c) to (b, h, w, c).

    norm=pre: x + f(norm(x)).  norm=res_post: x + norm(f(x)), where norms start at 0 (Swin V2,
    section 3.2 and the authors' initialisation).  cpe: x + depthwise 3x3 of x comes first.
    """

    def __init__(
        self, mixer: TokenMixer, *, dim: int, hidden: int, norm: str, cpe: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.post = norm == "res_post"
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if cpe else None
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer: TokenMixer = mixer
        self.mlp = MLP(dim, hidden)
        self.drop_path = DropPath(drop_path)
        if self.post:
            nn.init.zeros_(self.norm1.weight)
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.cpe is not None:
            x = x + nhwc(self.cpe(nchw(x)))  # (b, h, w, c)
        for norm, inner in ((self.norm1, self.mixer), (self.norm2, self.mlp)):
            x = x + self.drop_path(norm(inner(x)) if self.post else inner(norm(x)))  # (b, h, w, c)
        return x

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
