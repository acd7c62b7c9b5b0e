"""The MLPs of blocks, and stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.execution import backends
from attention.softmax.branch import projection as linear
from backbones.specs.spec import BackboneSpec


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


def make_mlp(spec: BackboneSpec, dim: int, hidden: int) -> MLP:
    """The MLP of a spec's blocks."""
    return MLPS[spec.mlp](dim, hidden)


MLPS = {"gelu": MLP}  # by the spec's word
