"""The stems of a backbone: images to the first map."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from attention.geometry import inputs
from attention.geometry.symbolic import known
from backbones.parts.layout import nchw, nhwc, pad_same, pad_to
from backbones.parts.mbconv import batch_norm
from backbones.parts.mlp import MLPS
from backbones.parts.position import add_position, make_position
from backbones.parts.resample import CrossScale, Strided, Window, Windows
from backbones.specs.spec import BackboneSpec


class Stem(Strided):
    """One strided convolution, a layer norm and absolute positions, if the spec has them.

    Positions are learned on the grid of the spec's image size, and interpolated (bicubic) on
    any other.  Subclasses have further convolutions.
    """

    conv: nn.Conv2d  # reads the image

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        dim = spec.stem_width
        self.stride = spec.stem_stride
        self.make(spec, dim)
        self.norm = nn.LayerNorm(dim) if spec.patch_norm else nn.Identity()
        self.owner = spec.name or "the backbone"
        self.position: nn.Parameter | None = None
        if spec.position == "absolute":
            self.position = make_position(dim, *spec.stem_grid(spec.img_size))

    def make(self, spec: BackboneSpec, dim: int) -> None:
        """Makes the convolutions."""
        p = spec.stem_stride
        kernel = p if spec.stem == "patch" else 2 * p - 1
        padding = {"patch": 0, "overlap": p // 2, "overlap_same": kernel // 2}[spec.stem]
        self.conv = nn.Conv2d(spec.in_channels, dim, kernel, p, padding)

    def pad(self, x: Tensor) -> Tensor:
        """Image (b, in_channels, H, W) with pads, so that every size rounds up."""
        return pad_to(x, self.stride)

    def convolve(self, x: Tensor) -> Tensor:
        """(b, in_channels, H, W) with its pads -> (b, c, h, w)."""
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) of images (b, in_channels, H, W).  Raises SpecError for other inputs."""
        inputs.check(x, self.owner, inputs.IMAGES, self.conv.in_channels)
        x = self.convolve(self.pad(x))  # (b, c, ceil(H / stride), ceil(W / stride))
        x = nchw(self.norm(nhwc(x).contiguous()))  # (b, c, h, w)
        return add_position(x, self.position, "bicubic")

    def cost(self, h: int, w: int) -> int:
        return h * w * self.conv.weight.numel()

    @property
    def window(self) -> Window:
        return Window(self.conv.kernel_size[0], self.stride, int(self.conv.padding[0]))


class DeepStem(Stem):
    """Two 3x3 convolutions of stride 2, each with batch norm and ReLU6, then 1x1.

    Source: Shuffle Transformer (Huang et al., arXiv 2106.03650), models/shuffle_transformer.py.
    """

    def make(self, spec: BackboneSpec, dim: int) -> None:
        width = spec.stem_dim or max(dim // 2, 1)
        self.conv = nn.Conv2d(spec.in_channels, width, 3, 2, 1)
        self.inner = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU6(), nn.Conv2d(width, dim, 3, 2, 1),
            nn.BatchNorm2d(dim), nn.ReLU6(), nn.Conv2d(dim, dim, 1),
        )  # fmt: skip

    def convolve(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x))  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        convs = (layer for layer in self.inner if isinstance(layer, nn.Conv2d))
        return h * w * (4 * self.conv.weight.numel() + sum(c.weight.numel() for c in convs))

    @property
    def window(self) -> Window:
        return Window(7, 4, 3)  # three rows of the inner map, two pixels apart


class TwoConvStem(Stem):
    """Two 3x3 convolutions of stride 2, and nothing between them (NAT's code).

    The map between them has only rows and columns of the image, so that the second convolution
    pads with zeros and not with the first one's bias.
    """

    def make(self, spec: BackboneSpec, dim: int) -> None:
        width = spec.stem_dim or max(dim // 2, 1)
        self.conv = nn.Conv2d(spec.in_channels, width, 3, 2, 1)
        self.conv2 = nn.Conv2d(width, dim, 3, 2, 1)

    def pad(self, x: Tensor) -> Tensor:
        return x

    def convolve(self, x: Tensor) -> Tensor:
        inner = self.conv(pad_to(x, self.stride))  # (b, c / 2, 2 h, 2 w)
        for axis in (2, 3):
            if not known(x.shape[axis] % self.stride == 0):
                inner = inner.narrow(axis, 0, (x.shape[axis] + 1) // 2)
        return self.conv2(inner)  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        return h * w * (4 * self.conv.weight.numel() + self.conv2.weight.numel())

    @property
    def window(self) -> Window:
        return Window(7, 4, 3)  # three rows of the inner map, two pixels apart


class NormedStem(Stem):
    """A strided convolution with batch norm and an activation, that of the MLPs, then 3x3.

    Source: MaxViT (Tu et al. 2022, arXiv 2204.01697), table 1.  conv_bn has the pads of
    TensorFlow's "same", as the authors' code; conv_bn_even those of torchvision's, on both sides,
    and no bias before the norm.
    """

    def make(self, spec: BackboneSpec, dim: int) -> None:
        p, width = self.stride, spec.stem_dim or dim
        self.even = spec.stem == "conv_bn_even"
        padding = p - 1 if self.even else 0
        self.conv = nn.Conv2d(spec.in_channels, width, 2 * p - 1, p, padding, bias=not self.even)
        self.norm1, self.activation = batch_norm(width), MLPS[spec.mlp].activation
        self.conv2 = nn.Conv2d(width, dim, 3, padding=1)

    def pad(self, x: Tensor) -> Tensor:
        return super().pad(x) if self.even else pad_same(x, 2 * self.stride - 1, self.stride)

    def convolve(self, x: Tensor) -> Tensor:
        return self.conv2(self.activation(self.norm1(self.conv(x))))  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        return super().cost(h, w) + h * w * self.conv2.weight.numel()

    def windows(self, before: tuple[int, int]) -> Windows:
        kernel, p = 2 * self.stride - 1, self.stride
        pads = [p - 1 if self.even else (-side % p + p - 1) // 2 for side in before]
        # three rows of the inner map, a stride apart
        rows, columns = (Window(kernel + 2 * p, p, pad + p) for pad in pads)
        return rows, columns


class CrossScaleStem(Stem):
    """Kernels of one, two, four and eight strides side by side (CrossFormer, section 3.1)."""

    def make(self, spec: BackboneSpec, dim: int) -> None:
        p = self.stride
        scales = CrossScale(spec.in_channels, dim, (p, 2 * p, 4 * p, 8 * p))
        self.conv, *larger = cast("list[nn.Conv2d]", scales.convs)
        self.larger = nn.ModuleList(larger)

    def convolve(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in (self.conv, *self.larger)], dim=1)  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        larger = cast("list[nn.Conv2d]", self.larger)
        return super().cost(h, w) + h * w * sum(conv.weight.numel() for conv in larger)

    @property
    def window(self) -> Window:
        return Window(8 * self.stride, self.stride, 7 * self.stride // 2)


def make_stem(spec: BackboneSpec) -> Stem:
    return STEMS.get(spec.stem, Stem)(spec)


STEMS = {  # by the spec's word; the others are one convolution
    "conv_relu6": DeepStem, "cross_scale": CrossScaleStem, "two_convs": TwoConvStem,
    "conv_bn": NormedStem,
    "conv_bn_even": NormedStem,
}  # fmt: skip
