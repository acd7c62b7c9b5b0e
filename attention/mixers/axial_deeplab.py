"""Position-sensitive attention along one axis, then the other (Axial-DeepLab, section 3.2)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.configs.lines import AxialDeepLabConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.symbolic import known
from attention.mixer import TokenMixer
from attention.softmax.branch import projection


def by_token(x: Tensor, matrices: Tensor) -> Tensor:
    """(b, m, n, k) times a matrix (k, l) of its own for each of n tokens: (b, m, n, l)."""
    b, m = x.shape[:2]
    y = torch.bmm(x.permute(2, 0, 1, 3).flatten(1, 2), matrices)  # (n, b * m, l)
    return y.unflatten(1, (b, m)).permute(1, 2, 0, 3)


class PositionSensitiveAxis(nn.Module):
    """Attention along the second axis of (b, n, inputs), with a learned position in q, k and v.

    Queries and keys are half as wide as values.  A relative position r has a vector for each of
    them, which all heads share.  The score of query i and key j is the sum of q_i k_j,
    q_i r^q_{i-j} and k_j r^k_{j-i}, each after a batch norm of its own per head, and has no scale;
    the result is the sum of the averages of v_j and of r^v_{i-j}, each after a batch norm.

    Source: Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853), eq. 4; the norms are those of
    lib/models/axialnet.py of csrhddlam/axial-deeplab.

    Args:
        inputs: channels of the input.
        dim, heads: channels and heads of the output.
        span: positions i - j from 1 - span to span - 1 are learned; keys beyond are masked.
    """

    def __init__(self, inputs: int, dim: int, heads: int, span: int) -> None:
        super().__init__()
        self.inputs, self.dim, self.heads, self.span = inputs, dim, heads, span
        self.width = dim // heads  # of a value; queries and keys have half of it
        self.qkv = projection(inputs, 2 * dim, bias=False)
        self.norm_qkv = nn.BatchNorm1d(2 * dim)
        self.table = nn.Parameter(torch.empty(2 * self.width, 2 * span - 1))
        nn.init.normal_(self.table, std=self.width**-0.5)
        self.norm_scores = nn.BatchNorm2d(3 * heads)
        self.norm_out = nn.BatchNorm1d(2 * dim)
        nn.init.normal_(self.qkv.weight, std=inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.norm_qkv(self.qkv(x).transpose(1, 2))  # (b, 2 c, n)
        parts = self.width // 2, self.width // 2, self.width
        q, k, v = qkv.unflatten(1, (self.heads, -1)).split(parts, dim=2)  # (b, m, d / 2 or d, n)
        steps = self.steps(x.shape[1], x.device)  # (n, n)
        inside = steps.clamp(1 - self.span, self.span - 1) + self.span - 1
        positions = self.table.index_select(1, inside.flatten()).unflatten(1, inside.shape)
        of_q, of_k, of_v = positions.to(q.dtype).split(parts)  # (d / 2 or d, n, n)
        wide = torch.promote_types(q.dtype, torch.float32)  # products have no scale
        q, k, of_q, of_k = (t.to(wide) for t in (q, k, of_q, of_k))
        with_q, with_k = by_token(q.mT, of_q.transpose(0, 1)), by_token(k.mT, of_k.transpose(0, 1))
        terms = q.mT @ k, with_q, with_k.mT  # (b, m, n, n) each
        scores = self.normalised(torch.cat(terms, dim=1))  # (b, 3 m, n, n)
        scores = scores.unflatten(1, (3, self.heads)).sum(1)  # (b, m, n, n)
        if not known(x.shape[1] <= self.span):
            scores = scores.masked_fill(steps.abs() >= self.span, -math.inf)
        weights = scores.softmax(-1).to(v.dtype)
        values = weights @ v.mT  # (b, m, n, d)
        offsets = by_token(weights, of_v.permute(1, 2, 0))  # (b, m, n, d)
        both = torch.stack((values.mT, offsets.mT), dim=3).flatten(1, 3)  # (b, 2 c, n), interleaved
        y: Tensor = self.norm_out(both).unflatten(1, (self.dim, 2)).sum(2)  # (b, c, n)
        return y.transpose(1, 2)  # (b, n, c)

    def normalised(self, terms: Tensor) -> Tensor:
        """The batch norm of the scores' terms, in their precision where no statistic is updated."""
        norm = self.norm_scores
        if norm.training or terms.dtype == norm.weight.dtype:
            return cast("Tensor", norm(terms.to(norm.weight.dtype)))
        state = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, var, weight, bias = (cast("Tensor", t).to(terms.dtype) for t in state)
        return F.batch_norm(terms, mean, var, weight, bias, eps=norm.eps)

    @staticmethod
    def steps(n: int, device: torch.device) -> Tensor:
        """(n, n): the position of the query minus that of the key."""
        place = torch.arange(n, device=device)
        return place[:, None] - place

    def cost(self, lines: int, n: int) -> Cost:
        """Of `lines` sequences of n tokens: three terms of half a width, two of a whole."""
        projections = 2 * lines * n * self.inputs * self.dim
        of_positions = lines * n * n * self.dim  # q r and k r
        return Cost(projections, lines * n * n * self.dim * 5 // 2, of_positions)


@register("axial_deeplab", config=AxialDeepLabConfig)
class AxialDeepLabMixer(TokenMixer):
    """One layer along columns, then one along rows, without anything between them."""

    config: AxialDeepLabConfig

    def __init__(
        self, config: AxialDeepLabConfig, *, dim: int, heads: int, index: int = 0
    ) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        along = {"both": ("height", "width")}.get(config.along, (config.along,))
        self.layers = nn.ModuleDict(
            {axis: PositionSensitiveAxis(dim, dim, heads, config.span) for axis in along}
        )

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = x.shape[1:3]
        size = 3 * self.heads * h * w * max(h, w) * x.element_size()  # of the scores of an image
        return backend.over_images(self._body, x, image_bytes=size)

    def _body(self, x: Tensor) -> Tensor:
        for axis, layer in self.layers.items():
            lines = x.transpose(1, 2) if axis == "height" else x  # (b, lines, n, c)
            y = layer(lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
            x = y.transpose(1, 2) if axis == "height" else y  # (b, h, w, c)
        return x

    def cost(self, h: int, w: int) -> Cost:
        sizes = {"height": (w, h), "width": (h, w)}
        layers = cast("dict[str, PositionSensitiveAxis]", self.layers)
        costs = [layer.cost(*sizes[axis]) for axis, layer in layers.items()]
        return Cost(*map(sum, zip(*costs, strict=True)))

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        near = []
        for axis, length, place in (("height", h, query[0]), ("width", w, query[1])):
            reach = self.config.span if axis in self.layers else 1
            near.append((torch.arange(length) - place).abs() < reach)
        return near[0][:, None] & near[1]
