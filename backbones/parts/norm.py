"""Norms of maps (b, h, w, c), and the learned scale of a residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.parts.layout import nchw, nhwc
from backbones.specs.spec import BackboneSpec


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of every channel: (b, h, w, c) to (b, h, w, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return nhwc(super().forward(nchw(x)))  # (b, h, w, c)


class LayerScale(nn.Module):
    """A learned factor per channel of a residual (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma  # (b, h, w, c)


def make_norm(spec: BackboneSpec, dim: int) -> nn.Module:
    """The norm of a spec's blocks."""
    kind = BatchNorm if spec.norm_layer == "batch" else nn.LayerNorm
    return kind(dim, eps=spec.eps)


def make_scale(spec: BackboneSpec, dim: int) -> nn.Module:
    return nn.Identity() if spec.layer_scale is None else LayerScale(dim, spec.layer_scale)
