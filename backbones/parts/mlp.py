"""The MLPs of blocks, and stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.execution import backends
from attention.softmax.branch import projection as linear
from backbones.parts.layout import nchw, nhwc
from backbones.specs.spec import BackboneSpec


class MLP(nn.Module):
    """Two linear layers with GELU between them, (..., dim) to (..., dim)."""

    activation: ClassVar[Callable[..., Tensor]] = staticmethod(F.gelu)

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return backends.current().over_rows(self._body, x, self.fc1.out_features)  # (..., dim)

    def _body(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))  # (..., hidden)
        return self.fc2(x)  # (..., dim)

    def cost(self, h: int, w: int) -> int:
        return h * w * (self.fc1.weight.numel() + self.fc2.weight.numel())


class ReLU6MLP(MLP):
    """Two linear layers with ReLU6 between them (Shuffle Transformer's code)."""

    activation = staticmethod(F.relu6)


class TanhGELUMLP(MLP):
    """Two linear layers with GELU by its tanh formula between them (MaxViT's code)."""

    activation = staticmethod(partial(F.gelu, approximate="tanh"))


class ConvMLP(MLP):
    """Two linear layers, between them a depthwise 3x3 convolution and GELU (PVT v2's code).

    Maps (b, h, w, dim); what is outside the map is 0 to the convolution.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:  # image by image, as a token needs its neighbours
        size = x.shape[1] * x.shape[2] * self.fc1.out_features * x.element_size()
        return backends.current().over_images(self._body, x, image_bytes=size)  # (b, h, w, dim)

    def _body(self, x: Tensor) -> Tensor:
        x = nhwc(self.conv(nchw(self._before(self.fc1(x)))))  # (b, h, w, hidden)
        return self.fc2(F.gelu(x))  # (b, h, w, dim)

    def _before(self, x: Tensor) -> Tensor:
        return x

    def cost(self, h: int, w: int) -> int:
        return super().cost(h, w) + h * w * self.conv.weight.numel()


class ReLUConvMLP(ConvMLP):
    """ConvMLP with a ReLU before the convolution (PVT v2's linear variant)."""

    def _before(self, x: Tensor) -> Tensor:
        return F.relu(x)


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


MLPS = {  # by the spec's word
    "gelu": MLP,
    "relu6": ReLU6MLP,
    "gelu_tanh": TanhGELUMLP,
    "conv": ConvMLP,
    "relu_conv": ReLUConvMLP,
}
