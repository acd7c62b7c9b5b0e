"""Mobile inverted bottlenecks, which stride at the start of a stage and stand between its blocks.

Sources: MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), squeeze-and-excitation (Hu et al.
2017, arXiv 1709.01507), both as MaxViT has them (Tu et al. 2022, arXiv 2204.01697, section 3.3).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.parts.layout import pad_same
from backbones.parts.mlp import MLPS, DropPath
from backbones.specs.spec import BackboneSpec

EXPANSION, SQUEEZED = 4, 4  # hidden channels, and squeezed ones: times and by the output's width
KERNEL = 3


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the epsilon and momentum of the authors' code."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions with squeeze-and-excitation on a residual, in NCHW.

    The input is normed first, and the depthwise convolution strides.  A strided shortcut averages,
    and is projected where the width changes.

    mbconv (TensorFlow, timm's _tf models): pads of TensorFlow's "same", averages of 2x2 without
    pads, as the authors' code has them on an odd map.  mbconv_even (torchvision): a pad of 1 on
    both sides, averages of 3x3 with pads, and every strided shortcut is projected.

    Args:
        spec: of the backbone: which of the two, and the activation, that of its MLPs.
        inputs: channels.
        outputs: channels.
        stride: 1 or 2.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, spec: BackboneSpec, inputs: int, outputs: int, *, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.stride, self.even = stride, spec.downsample == "mbconv_even"
        self.activation = MLPS[spec.mlp].activation
        hidden, squeezed = EXPANSION * outputs, max(outputs // SQUEEZED, 1)
        padding = KERNEL // 2 if self.even else 0
        self.norm = batch_norm(inputs)
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = batch_norm(hidden)
        self.depthwise = nn.Conv2d(
            hidden, hidden, KERNEL, stride, padding, groups=hidden, bias=False
        )
        self.norm2 = batch_norm(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.project = nn.Conv2d(hidden, outputs, 1)
        projected = inputs != outputs or (self.even and stride > 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if projected else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, outputs, ceil(h / stride), ceil(w / stride)) of a map (b, inputs, h, w)."""
        y = self.activation(self.norm1(self.expand(self.norm(x))))
        y = self.depthwise(y if self.even else pad_same(y, KERNEL, self.stride))
        y = self.activation(self.norm2(y))  # (b, hidden, h', w')
        gate = self.squeeze(y.mean((2, 3), keepdim=True))  # (b, squeezed, 1, 1)
        y = self.project(y * self.excite(F.silu(gate)).sigmoid())  # (b, outputs, h', w')
        return self.shortcut(self._averaged(x)) + self.drop_path(y)

    def _averaged(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        if self.even:
            return F.avg_pool2d(x, 3, self.stride, padding=1)
        # the last window averages what is inside the map
        return F.avg_pool2d(x, self.stride, ceil_mode=True)

    def cost(self, h: int, w: int, before: tuple[int, int]) -> int:
        """Multiply-adds for an output of h x w tokens, from a map of `before` tokens."""
        inside = self.depthwise.weight.numel() + self.project.weight.numel()
        if isinstance(self.shortcut, nn.Conv2d):
            inside += self.shortcut.weight.numel()
        gate = self.squeeze.weight.numel() + self.excite.weight.numel()
        return before[0] * before[1] * self.expand.weight.numel() + h * w * inside + gate


def stands_between(spec: BackboneSpec, number: int) -> bool:
    """True if an inverted bottleneck stands before block `number` of a stage, counted from 0.

    The downsampling stands before the first block, and one before every second later block.
    """
    return spec.first_downsample and number > 0 and number % 2 == 0


def make_between(spec: BackboneSpec, dim: int, number: int, drop_path: float) -> MBConv | None:
    """The inverted bottleneck before block `number` of a stage, if one stands there."""
    if not stands_between(spec, number):
        return None
    return MBConv(spec, dim, dim, stride=1, drop_path=drop_path)
