"""Absolute positions: learned on the grid of one map, interpolated on any other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.geometry.symbolic import known


def make_position(*shape: int) -> nn.Parameter:
    position = nn.Parameter(torch.zeros(1, *shape))
    nn.init.trunc_normal_(position, std=0.02)
    return position


def add_position(x: Tensor, position: Tensor | None, mode: str) -> Tensor:
    """Map (b, c, h, w) with positions (1, c, h', w') added, if there are any.

    mode: of the interpolation, bicubic (Swin's and ViT's code) or bilinear (PVT's).
    """
    if position is None:
        return x
    h, w = x.shape[2:]
    if not (known(position.shape[2] == h) and known(position.shape[3] == w)):
        position = F.interpolate(position, (h, w), mode=mode, align_corners=False)
    return x + position.to(x.dtype)  # (b, c, h, w)
