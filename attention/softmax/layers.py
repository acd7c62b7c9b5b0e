"""The two orders in which a map comes to softmax attention inside groups.

`PadFirst`      pad, roll, partition, project, attend, project, reverse   (window, cosine, shuffle)
`ProjectFirst`  project, then each branch: pad, partition, attend, reverse; project
                                                                          (axial, cross, full)

A leaf says only how it cuts a map: one `Groups` per branch.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention.catalogue import SoftmaxConfig
from attention.execution.backends import Reference
from attention.geometry.groups import Groups
from attention.mixer import TokenMixer, map_size
from attention.registry import Cost
from attention.softmax.branch import Branch, projection


def add_costs(*costs: Cost) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


def refusal_of(cuts: tuple[Groups, ...], x: Tensor, heads: int) -> str | None:
    """Why the GPU kernel cannot attend inside one of these cuts of x, None if it can."""
    from attention.kernels import fused

    reasons = (fused.supported(x, cut, heads=heads) for cut in cuts)
    return next(filter(None, reasons), None)


class SoftmaxMixer(TokenMixer):
    """A mixer whose branches are softmax attention inside groups, one cut for each.

    Queries, keys and values are one linear layer `qkv`.  Cosine scores have no key bias (Swin
    V2's code: it would not be a constant of the softmax there, and the published weights were
    trained without), so that the biases of queries and values stand beside the layer.
    """

    config: SoftmaxConfig

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        cosine = config.scores == "cosine"
        self.qkv = projection(dim, 3 * dim, bias=config.qkv_bias and not cosine)
        apart = config.qkv_bias and cosine
        self.q_bias = nn.Parameter(torch.zeros(dim)) if apart else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if apart else None

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        """One cut of an (h, w) map for every branch."""
        raise NotImplementedError

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., dim) -> queries, keys and values, (..., dim) each."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        return q, k, v

    def kernel_refusal(self, x: Tensor) -> str | None:
        return refusal_of(self.cuts(*map_size(x)), x, self.heads)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        return reduce(torch.logical_or, (cut.region(query) for cut in self.cuts(h, w)))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("q_bias", "v_bias"):  # where they stood at first
            if (first := f"{prefix}qkv.{name}") in state:
                state[prefix + name] = state.pop(first)
        super()._load_from_state_dict(state, prefix, *args)


class PadFirst(SoftmaxMixer):
    """One branch on the padded map: pads become keys and values that are the projection's bias."""

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.branch = Branch(config, dim=dim, heads=heads, extent=self.cut(1, 1).extent)
        self.proj = projection(dim, dim)

    def cut(self, h: int, w: int) -> Groups:
        raise NotImplementedError

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        return (self.cut(h, w),)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.cut(*map_size(x))

        def body(part: slice, tokens: Tensor) -> Tensor:
            q, k, v = self.project(tokens)
            return self.proj(backend.attend(self.branch, q, k, v, groups, part))

        return backend.over_groups(body, groups, x, width=3 * self.dim)

    def cost(self, h: int, w: int) -> Cost:
        groups = self.cut(h, w)
        pads = groups.tokens - groups.real_tokens
        square = self.dim * self.dim
        projections = Cost(4 * groups.tokens * square, 0, 0, 4 * pads * square)
        return add_costs(projections, self.branch.cost(groups))


class ProjectFirst(SoftmaxMixer):
    """Branches that share one projection of the real map, each with an equal part of the
    channels and heads; pads are keys and values that are 0."""

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        n = len(self.cuts(1, 1))
        self.branches = nn.ModuleList(
            Branch(config, dim=dim // n, heads=heads // n) for _ in range(n)
        )
        self.proj = projection(dim, dim)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        cuts = self.cuts(*map_size(x))
        return self.proj(in_branches(self.branches, self.project(x), cuts, cuts, backend))

    def cost(self, h: int, w: int) -> Cost:
        projections = Cost(4 * h * w * self.dim * self.dim, 0)
        branches = cast("list[Branch]", self.branches)
        costs = (b.cost(groups) for b, groups in zip(branches, self.cuts(h, w), strict=True))
        return add_costs(projections, *costs)


def in_branches(
    branches: nn.ModuleList, qkv: tuple[Tensor, ...], cuts: tuple[Groups, ...],
    moved: tuple[Groups, ...], backend: Reference,
) -> Tensor:  # fmt: skip
    """Every branch on its own part of the channels.

    Args:
        qkv: three maps (b, h, w, c).
        cuts: a cut for each branch; its pads may be hidden.
        moved: the same cuts of these maps, on which pads may stand already.

    Returns:
        (b, h, w, c).
    """
    out, n = [], len(cuts)
    parts = zip(*(t.chunk(n, dim=-1) for t in qkv), strict=True)
    for branch, groups, cut, maps in zip(branches, cuts, moved, parts, strict=True):

        def body(part: slice, *tokens: Tensor, _own: Any = (branch, groups)) -> Tensor:
            q, k, v = tokens
            return backend.attend(_own[0], q, k, v, _own[1], part)

        out.append(backend.over_groups(body, cut, *maps, width=3 * maps[0].shape[-1]))
    return out[0] if n == 1 else torch.cat(out, dim=-1)
