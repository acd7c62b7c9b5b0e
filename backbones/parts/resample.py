"""Strided layers of a backbone, NCHW to NCHW in channels-last memory.

A strided layer pads bottom and right, so that every size rounds up.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from attention.softmax.branch import projection as linear
from backbones.parts.layout import nchw, nhwc, pad_to
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


def make_downsample(spec: BackboneSpec, inputs: int, outputs: int) -> Resample | Merge:
    if spec.downsample in ("merge", "merge_post"):
        return Merge(inputs, outputs, post=spec.downsample == "merge_post")
    norm = spec.downsample == "conv_norm"
    return Resample(inputs, outputs, kernel=3, stride=2, padding=1, norm=norm)
