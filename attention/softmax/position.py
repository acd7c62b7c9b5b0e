"""Position terms, which a branch adds to its scores (bias) or to its output (LePE)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attention.execution.cache import cached
from attention.geometry.groups import Groups
from attention.geometry.symbolic import copied, known

CPB_WIDTH = 512
MIN_NORM = 1e-12  # shorter vectors are divided by this instead of their norm


def relative_index(gh: int, gw: int, device: torch.device) -> Tensor:
    """(l, l) with l = gh * gw: the row of query - key in a (2gh - 1)(2gw - 1) table."""
    token = torch.arange(gh * gw, device=device)  # (l,)
    row, col = token // gw, token % gw
    row = row[:, None] - row + gh - 1  # (l, l)
    col = col[:, None] - col + gw - 1
    return row * (2 * gw - 1) + col


def log_steps(extent: tuple[int, int], unit: tuple[int, int], like: Tensor) -> Tensor:
    """Log-spaced relative coordinates of the rows of a table (Swin V2, section 3.3, eq. 4).

    Args:
        extent: (gh, gw) of a group.
        unit: (gh, gw) of the group whose largest steps have the coordinates -1 and 1.
        like: a tensor of the dtype and device of the result.

    Returns:
        ((2gh - 1)(2gw - 1), 2), in the order of `relative_index`.
    """
    wide = torch.promote_types(like.dtype, torch.float32)  # never computed in half precision
    steps = [
        torch.arange(1 - length, length, device=like.device, dtype=wide) / max(largest - 1, 1)
        for length, largest in zip(extent, unit, strict=True)
    ]
    coords = 8 * torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).flatten(0, 1)
    return (coords.sign() * torch.log2(coords.abs() + 1) / math.log2(8)).to(like.dtype)


def gather(table: Tensor, groups: Groups) -> Tensor:
    """(relative steps, heads) -> (heads, l, l), contiguous, as attention reads it fastest."""
    key = "relative", groups.extent, table.device
    index = cached(key, lambda: relative_index(*groups.extent, table.device))  # (l, l)
    return table.t().index_select(1, index.flatten()).unflatten(1, index.shape)


class RelativeBias(nn.Module):
    """Learned bias per head and relative step: groups -> (heads, l, l) (Swin, eq. 4)."""

    def __init__(self, heads: int, extent: tuple[int, int]) -> None:
        super().__init__()
        gh, gw = extent
        self.table = nn.Parameter(torch.zeros((2 * gh - 1) * (2 * gw - 1), heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, groups: Groups) -> Tensor:
        return gather(self.table, groups)  # (heads, l, l)

    def steps(self, extent: tuple[int, int]) -> Tensor:
        """((2gh - 1)(2gw - 1), heads), in the order of `relative_index`."""
        return self.table

    def cost(self, groups: Groups) -> int:
        return 0

    def table_cost(self, extent: tuple[int, int]) -> int:
        return 0


class LogCPB(nn.Module):
    """Continuous bias from log-spaced steps: groups -> (heads, l, l) (Swin V2, section 3.3).

    The steps along an axis are divided by its largest step in a group of `pretrained`, or of the
    map's groups, so that one MLP of width 512 computes the table of any extent.
    """

    def __init__(self, heads: int, pretrained: tuple[int, int] | None) -> None:
        super().__init__()
        self.heads, self.pretrained = heads, pretrained
        steps, out = nn.Linear(2, CPB_WIDTH), nn.Linear(CPB_WIDTH, heads, bias=False)
        nn.init.trunc_normal_(steps.weight, std=0.02)
        nn.init.trunc_normal_(out.weight, std=0.02)
        nn.init.zeros_(steps.bias)
        self.mlp = nn.Sequential(steps, nn.ReLU(), out)

    def forward(self, groups: Groups) -> Tensor:
        return gather(self.steps(groups.extent), groups)

    def steps(self, extent: tuple[int, int]) -> Tensor:
        """((2gh - 1)(2gw - 1), heads), in the order of `relative_index`."""
        weight = next(self.mlp.parameters(), torch.empty(0))  # a quantised layer has none
        unit = self.pretrained or extent
        key = "log steps", extent, unit, weight.dtype, weight.device
        coords = cached(key, lambda: log_steps(extent, unit, weight))  # (steps, 2)
        return 16 * torch.sigmoid(self.mlp(coords))

    def cost(self, groups: Groups) -> int:
        return self.table_cost(groups.extent)

    def table_cost(self, extent: tuple[int, int]) -> int:
        gh, gw = extent
        return (2 * gh - 1) * (2 * gw - 1) * CPB_WIDTH * (2 + self.heads)


class LePE(nn.Module):
    """Locally-enhanced positional encoding of the values (CSWin, eq. 7).

    A depthwise 3x3 convolution on each group as an image of gh x gw, so that it never crosses a
    group.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, v: Tensor, groups: Groups) -> Tensor:
        """(b, n, l, c) -> (b, n, l, c), for the tokens of any n groups."""
        b, n = v.shape[:2]
        image = v.flatten(0, 1).unflatten(1, groups.extent)  # (b * n, gh, gw, c)
        image = image.permute(0, 3, 1, 2)  # (b * n, c, gh, gw)
        free = not isinstance(image.shape[0], int)
        if free and not known(image.shape[0] > 1):
            # to tell channels-last from its strides, torch would ask whether a free b * n is over
            # 1, and a graph that is exported so refuses one group
            image = copied(image)
        y = self.conv(image)  # (b * n, c, gh, gw)
        return copied(y.permute(0, 2, 3, 1)).flatten(1, 2).unflatten(0, (b, n))  # (b, n, l, c)

    def cost(self, groups: Groups, tokens: int) -> int:
        return 9 * tokens * self.conv.in_channels


def cosine_normalize(x: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """Normalises the last axis of x to a norm of `length`; the zero vector stays zero.

    Norms are computed in float32 at least, in which MIN_NORM is not 0.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return (x * (length / norm.clamp(min=MIN_NORM))).to(x.dtype)
