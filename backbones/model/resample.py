"""The stem and the downsampling of a backbone, NCHW to NCHW in channels-last memory.

A strided layer pads bottom and right, so that every size rounds up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attention.geometry import inputs
from attention.geometry.symbolic import known
from attention.softmax.branch import projection as linear
from backbones.model.layout import nchw, nhwc, pad_to
from backbones.specs.spec import BackboneSpec


class Resample(nn.Module):
    """A strided convolution, with or without a layer norm: stems and CSWin's merging."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, padding: int, norm: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.LayerNorm(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad_to(x, self.stride))  # (b, c, ceil(h / stride), ceil(w / stride))
        x = self.norm(nhwc(x).contiguous())  # (b, h, w, c)
        return nchw(x)  # (b, c, h, w)

    def cost(self, h: int, w: int) -> int:
        """Multiply-adds for an output of h x w tokens."""
        return h * w * self.conv.weight.numel()


class Merge(nn.Module):
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
        """Multiply-adds for an output of h x w tokens."""
        return h * w * self.reduction.weight.numel()


class Stem(Resample):
    """The strided convolution of a spec, and its absolute positions if it has them.

    Positions are learned on the grid of the spec's image size, and interpolated (bicubic) on
    any other.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        p, dim = spec.patch_size, spec.stages[0].dim
        kernel = p if spec.stem == "patch" else 2 * p - 1
        padding = {"patch": 0, "overlap": p // 2, "overlap_same": kernel // 2}[spec.stem]
        super().__init__(
            spec.in_channels, dim, kernel=kernel, stride=p, padding=padding, norm=spec.patch_norm
        )
        self.owner = spec.name or "the backbone"
        self.position: nn.Parameter | None = None
        if spec.position == "absolute":
            self.position = nn.Parameter(torch.zeros(1, dim, *spec.grids(spec.img_size)[0]))
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) of images (b, in_channels, H, W).  Raises SpecError for other inputs."""
        inputs.check(x, self.owner, inputs.IMAGES, self.conv.in_channels)
        x = super().forward(x)  # (b, c, h, w)
        if self.position is None:
            return x
        position: Tensor = self.position  # (1, c, h, w) of the spec's image size
        h, w = x.shape[2:]
        if not (known(position.shape[2] == h) and known(position.shape[3] == w)):
            position = F.interpolate(position, x.shape[2:], mode="bicubic", align_corners=False)
        return x + position.to(x.dtype)  # (b, c, h, w)


def make_downsample(spec: BackboneSpec, inputs: int, outputs: int) -> Resample | Merge:
    if spec.downsample in ("merge", "merge_post"):
        return Merge(inputs, outputs, post=spec.downsample == "merge_post")
    norm = spec.downsample == "conv_norm"
    return Resample(inputs, outputs, kernel=3, stride=2, padding=1, norm=norm)
