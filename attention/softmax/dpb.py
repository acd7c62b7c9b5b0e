"""Dynamic position bias: a bias from the steps themselves, for groups of any extent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention.execution.cache import cached
from attention.geometry.groups import Groups
from attention.softmax.position import gather

LEAST_WIDTH = 4  # below it, layer norms leave hardly anything of the steps


def whole_steps(extent: tuple[int, int], like: Tensor) -> Tensor:
    """((2gh - 1)(2gw - 1), 2): steps of query - key in tokens, in the order of `relative_index`."""
    steps = [
        torch.arange(1 - length, length, device=like.device, dtype=like.dtype) for length in extent
    ]
    return torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1).flatten(0, 1)


class DynamicBias(nn.Module):
    """Bias of a small MLP of the step in tokens: groups -> (heads, l, l).

    Source: CrossFormer (Wang et al. 2021, arXiv 2108.00154), section 3.3: a linear layer, then
    thrice layer norm, ReLU and a linear layer, of width dim // 16 as in the authors' code.
    """

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        width = max(dim // 16, LEAST_WIDTH)
        self.heads, self.width = heads, width
        first, *rest = (
            nn.Linear(inputs, outputs)
            for inputs, outputs in ((2, width), (width, width), (width, width), (width, heads))
        )
        parts: list[nn.Module] = [first]
        for layer in rest:
            parts += [nn.LayerNorm(width), nn.ReLU(), layer]
        for layer in (first, *rest):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*parts)

    def forward(self, groups: Groups) -> Tensor:
        return gather(self.steps(groups.extent), groups)

    def steps(self, extent: tuple[int, int]) -> Tensor:
        """((2gh - 1)(2gw - 1), heads), in the order of `relative_index`."""
        weight = next(self.layers.parameters())  # of a norm, if the others are quantised
        key = "whole steps", extent, weight.dtype, weight.device
        return self.layers(cached(key, lambda: whole_steps(extent, weight)))

    def cost(self, groups: Groups) -> int:
        return self.table_cost(groups.extent)

    def table_cost(self, extent: tuple[int, int]) -> int:
        gh, gw = extent
        layers = self.width * (2 + 2 * self.width + self.heads)
        return (2 * gh - 1) * (2 * gw - 1) * layers
