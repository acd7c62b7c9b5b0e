"""Strided layers of a backbone, NCHW to NCHW in channels-last memory.

A strided layer pads bottom and right, so that every size rounds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from attention.softmax.branch import projection as linear
from backbones.parts.layout import nchw, nhwc, pad_to
from backbones.parts.mbconv import MBConv
from backbones.parts.norm import make_norm
from backbones.specs.spec import BackboneSpec


class Window(NamedTuple):
    """The pixels or tokens that a strided layer reads along each axis: kernel, stride, padding."""

    kernel: int
    stride: int
    padding: int


Windows = tuple[Window, Window]  # of rows and columns


class Strided(nn.Module):
    """A strided layer, NCHW to NCHW: a stem or a downsampling."""

    @property
    def window(self) -> Window:
        raise NotImplementedError

    def windows(self, before: tuple[int, int]) -> Windows:
        """Those of both axes, for an input of (h, w)."""
        return self.window, self.window

    def cost(self, h: int, w: int) -> int:
        """Multiply-adds for an output of h x w tokens."""
        raise NotImplementedError


class Resample(Strided):
    """A strided convolution, with or without a layer norm: stems and CSWin's merging."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, padding: int, norm: bool,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = nn.LayerNorm(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad_to(x, self.stride))  # (b, c, ceil(h / stride), ceil(w / stride))
        x = self.norm(nhwc(x).contiguous())  # (b, h, w, c)
        return nchw(x)  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        return h * w * self.conv.weight.numel()

    @property
    def window(self) -> Window:
        return Window(self.conv.kernel_size[0], self.stride, int(self.conv.padding[0]))


class NormConv(Strided):
    """A norm, then a 2x2 convolution of stride 2 without bias (Shuffle Transformer's code)."""

    def __init__(self, spec: BackboneSpec, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = make_norm(spec, inputs)
        self.conv = nn.Conv2d(inputs, outputs, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nchw(self.norm(nhwc(x)))  # (b, inputs, h, w); before the pads, which a norm would count
        return self.conv(pad_to(x, 2))  # (b, outputs, h/2, w/2)

    def cost(self, h: int, w: int) -> int:
        return h * w * self.conv.weight.numel()

    @property
    def window(self) -> Window:
        return Window(2, 2, 0)


class CrossScale(nn.Module):
    """Convolutions of one stride and growing kernels side by side, the larger the narrower.

    Source: CrossFormer (Wang et al. 2021, arXiv 2108.00154), section 3.1: each has half of the
    channels that are left, but the last all of them.
    """

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int]) -> None:
        super().__init__()
        stride, *_ = kernels
        widths = [outputs // 2 ** (i + 1) for i in range(len(kernels) - 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, stride, (kernel - stride) // 2)
            for kernel, width in zip(kernels, (*widths, outputs - sum(widths)), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w), whose sides the stride divides -> (b, outputs, h/stride, ...)."""
        return torch.cat([conv(x) for conv in self.convs], dim=1)

    def cost(self, h: int, w: int) -> int:
        return h * w * sum(conv.weight.numel() for conv in cast("list[nn.Conv2d]", self.convs))


class NormCrossScale(Strided):
    """A norm, then convolutions of 2x2 and 4x4 side by side, with stride 2 (CrossFormer)."""

    def __init__(self, spec: BackboneSpec, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = make_norm(spec, inputs)
        self.scales = CrossScale(inputs, outputs, (2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = nchw(self.norm(nhwc(x)))  # (b, inputs, h, w); before the pads, as in NormConv
        return self.scales(pad_to(x, 2))  # (b, outputs, h/2, w/2)

    def cost(self, h: int, w: int) -> int:
        return self.scales.cost(h, w)

    @property
    def window(self) -> Window:
        return Window(4, 2, 1)


class Merge(Strided):
    """2x2 neighbours concatenated, column by column, and projected (Swin, section 3.1).

    The norm comes before the projection, or with `post` after it (Swin V2's code).
    """

    def __init__(self, inputs: int, outputs: int, *, post: bool) -> None:
        super().__init__()
        self.post = post
        self.reduction = linear(4 * inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs if post else 4 * inputs)

    def forward(self, x: Tensor) -> Tensor:
        x = nhwc(pad_to(x, 2))  # (b, h, w, c); channels last, so that the gradient is, too
        x = rearrange(x, "b (h y) (w x) c -> b h w (x y c)", y=2, x=2)  # (b, h/2, w/2, 4 c)
        if self.post:
            return nchw(self.norm(self.reduction(x)))  # (b, outputs, h/2, w/2)
        return nchw(self.reduction(self.norm(x)))  # (b, outputs, h/2, w/2)

    def cost(self, h: int, w: int) -> int:
        return h * w * self.reduction.weight.numel()

    @property
    def window(self) -> Window:
        return Window(2, 2, 0)


def make_downsample(
    spec: BackboneSpec, inputs: int, outputs: int, drop_path: float
) -> Strided | MBConv:
    """The downsampling at the start of a stage; one on a residual drops it at a rate."""
    if spec.first_downsample:
        return MBConv(spec, inputs, outputs, stride=2, drop_path=drop_path)
    if spec.downsample in ("merge", "merge_post"):
        return Merge(inputs, outputs, post=spec.downsample == "merge_post")
    if spec.downsample == "norm_conv":
        return NormConv(spec, inputs, outputs)
    if spec.downsample == "cross_scale":
        return NormCrossScale(spec, inputs, outputs)
    if spec.downsample == "patch_norm":
        kernel, padding = 2, 0
    else:
        kernel, padding = 3, 1
    return Resample(
        inputs, outputs, kernel=kernel, stride=2, padding=padding, norm=spec.downsample != "conv",
        bias=spec.downsample_bias,
    )  # fmt: skip
