"""Attention along one axis at a time (after Axial-DeepLab and Ho et al. 2019)."""

from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from attention.configs.lines import AxialConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.mixer import TokenMixer
from attention.softmax.layers import ProjectFirst, add_costs


def _column(h: int, w: int) -> Groups:
    return Groups(axis(h, h), axis(w, 1))


def _row(h: int, w: int) -> Groups:
    return Groups(axis(h, 1), axis(w, w))


class _Halves(ProjectFirst):
    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return _column(h, w), _row(h, w)


class _Columns(ProjectFirst):
    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return (_column(h, w),)


class _Rows(ProjectFirst):
    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return (_row(h, w),)


@register("axial", config=AxialConfig)
class AxialMixer(TokenMixer):
    """Attention along whole columns and along whole rows.

    order=parallel is one layer, with half the channels for each axis; order=sequential is two
    layers of full width, columns first, without anything between them.
    """

    def __init__(self, config: AxialConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        layers = (_Halves,) if config.order == "parallel" else (_Columns, _Rows)
        self.layers = nn.ModuleList(layer(config, dim=dim, heads=heads) for layer in layers)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        for layer in self.layers:
            x = layer(x)  # (b, h, w, c)
        return x

    def kernel_refusal(self, x: Tensor) -> str | None:
        return ""  # each layer answers for itself

    def cost(self, h: int, w: int) -> Cost:
        return add_costs(*(layer.cost(h, w) for layer in cast("list[ProjectFirst]", self.layers)))

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """The region of the layers in sequence: from the last to the first, each one's region of
        every token that reaches the query."""
        reach = torch.zeros(h, w, dtype=torch.bool)
        reach[query] = True
        for layer in reversed(cast("list[ProjectFirst]", self.layers)):
            tokens = [(int(i), int(j)) for i, j in reach.nonzero()]
            reach = reduce(torch.logical_or, (layer.region(h, w, token) for token in tokens))
        return reach
