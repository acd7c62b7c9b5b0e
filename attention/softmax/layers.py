"""The two orders of padding and projection in softmax mixers.

`PadFirst`      pad, roll, partition, project, attend, project, reverse   (window, cosine, shuffle)
`ProjectFirst`  project, then each branch: pad, partition, attend, reverse; project
                                                                          (axial, cross, full)

A subclass defines only the partition of a map: one `Groups` per branch.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention.configs.softmax import SoftmaxConfig
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.groups import Groups
from attention.mixer import TokenMixer, map_size
from attention.softmax.branch import Branch, projection


def add_costs(*costs: Cost) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


def refusal_of(branch_groups: tuple[Groups, ...], x: Tensor, heads: int) -> str | None:
    """Why the GPU kernel cannot attend inside the groups of one branch of x, None if it can."""
    from attention.kernels import fused

    reasons = (fused.supported(x, groups, heads=heads) for groups in branch_groups)
    return next(filter(None, reasons), None)


class SoftmaxMixer(TokenMixer):
    """A mixer whose branches are softmax attention inside groups.

    Queries, keys and values are one linear layer `qkv`.  With cosine scores keys have no bias, as
    in Swin V2's code (a key bias would not cancel in the softmax, and the published weights were
    trained without), so that the biases of queries and values are parameters beside the layer.
    """

    config: SoftmaxConfig

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        cosine = config.scores == "cosine"
        self.qkv = projection(dim, 3 * dim, bias=config.qkv_bias and not cosine)
        separate_bias = config.qkv_bias and cosine
        self.q_bias = nn.Parameter(torch.zeros(dim)) if separate_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if separate_bias else None

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        """The groups of an (h, w) map, for every branch."""
        raise NotImplementedError

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., dim) -> queries, keys and values, (..., dim) each."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (..., dim) each
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        return q, k, v

    def kernel_refusal(self, x: Tensor) -> str | None:
        return refusal_of(self.branch_groups(*map_size(x)), x, self.heads)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        regions = (groups.region(query) for groups in self.branch_groups(h, w))
        return reduce(torch.logical_or, regions)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("q_bias", "v_bias"):  # older files hold them inside qkv
            if (older := f"{prefix}qkv.{name}") in state:
                state[prefix + name] = state.pop(older)
        super()._load_from_state_dict(state, prefix, *args)


class PadFirst(SoftmaxMixer):
    """One branch; the map is padded, then projected.

    A pad's key and value are the projection's bias.
    """

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.branch = Branch(config, dim=dim, heads=heads, extent=self.groups(1, 1).extent)
        self.proj = projection(dim, dim)

    def groups(self, h: int, w: int) -> Groups:
        """The groups of an (h, w) map."""
        raise NotImplementedError

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return (self.groups(h, w),)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.groups(*map_size(x))

        def body(part: slice, tokens: Tensor) -> Tensor:  # (b, n, l, c)
            q, k, v = self.project(tokens)  # (b, n, l, c) each
            return self.proj(backend.attend(self.branch, q, k, v, groups, part))  # (b, n, l, c)

        return backend.over_groups(body, groups, x, width=3 * self.dim)  # (b, h, w, c)

    def cost(self, h: int, w: int, tokens: int = 0) -> Cost:
        """tokens: beside the map, as many in every group."""
        groups = self.groups(h, w)
        pads = groups.tokens - groups.real_tokens
        square = self.dim * self.dim
        projections = Cost(4 * (groups.tokens + tokens) * square, 0, 0, 4 * pads * square)
        return add_costs(projections, self.branch.cost(groups, tokens // groups.n))


class ProjectFirst(SoftmaxMixer):
    """Branches with equal parts of channels and heads; the map is projected, then padded.

    A pad's key and value are zeros.
    """

    def __init__(self, config: SoftmaxConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        n = len(self.branch_groups(1, 1))
        self.branches = nn.ModuleList(
            Branch(config, dim=dim // n, heads=heads // n) for _ in range(n)
        )
        self.proj = projection(dim, dim)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.branch_groups(*map_size(x))
        y = in_branches(self.branches, self.project(x), groups, groups, backend)  # (b, h, w, c)
        return self.proj(y)

    def cost(self, h: int, w: int) -> Cost:
        projections = Cost(4 * h * w * self.dim * self.dim, 0)
        branches = cast("list[Branch]", self.branches)
        pairs = zip(branches, self.branch_groups(h, w), strict=True)
        return add_costs(projections, *(branch.cost(groups) for branch, groups in pairs))


def in_branches(
    branches: nn.ModuleList, qkv: tuple[Tensor, ...], masked: tuple[Groups, ...],
    partitioned: tuple[Groups, ...], backend: Reference,
) -> Tensor:  # fmt: skip
    """The attention of every branch on its part of the channels, side by side.

    Args:
        branches: a `Branch` for each part of the channels.
        qkv: queries, keys and values, maps (b, h, w, c).
        masked: for each branch the groups whose pads it masks.
        partitioned: for each branch the groups of the maps in `qkv`.  They differ from `masked`
            where the maps are padded already.
        backend: executes the branches.

    Returns:
        (b, h, w, c).
    """
    out, n = [], len(masked)
    parts = zip(*(t.chunk(n, dim=-1) for t in qkv), strict=True)  # (b, h, w, c / n) each
    for branch, groups, map_groups, maps in zip(branches, masked, partitioned, parts, strict=True):

        def body(
            part: slice, *tokens: Tensor, _branch: Any = branch, _groups: Groups = groups
        ) -> Tensor:
            q, k, v = tokens
            return backend.attend(_branch, q, k, v, _groups, part)

        out.append(backend.over_groups(body, map_groups, *maps, width=3 * maps[0].shape[-1]))
    return out[0] if n == 1 else torch.cat(out, dim=-1)  # (b, h, w, c)
