"""Layouts of a map, (b, c, h, w) in channels-last memory and its (b, h, w, c) view, and its pads.

The view costs no copy.  Pads stand at the bottom and right, so that every size rounds up; those of
`pad_same` stand on both sides, the smaller part first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from attention.geometry.symbolic import known, round_up


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # (b, h, w, c)


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)  # (b, c, h, w)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """Map (b, c, h, w) with zeros at the bottom and right, up to multiples of both sides."""
    h, w = x.shape[2:]
    after_h, after_w = round_up(h, multiple) - h, round_up(w, multiple) - w
    return x if known(after_h + after_w == 0) else F.pad(x, (0, after_w, 0, after_h))


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Map (b, c, h, w) with the zeros of TensorFlow's "same", for kernels that overlap."""
    sides: list[int] = []
    for length in (x.shape[3], x.shape[2]):  # F.pad takes the last axis first
        pads = round_up(length, stride) - length + kernel - stride
        sides += [pads // 2, pads - pads // 2]
    return F.pad(x, sides)  # (b, c, h + kernel - stride, ...), h rounded up
