"""Global self-attention: one group, the whole map."""

from typing import Any, cast

import torch
from torch import Tensor

from attention.configs.lines import FullConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.mixer import map_size
from attention.softmax.branch import Branch
from attention.softmax.layers import ProjectFirst, add_costs


@register("full", config=FullConfig)
class FullMixer(ProjectFirst):
    """Attention of every token to every token (MSA); CSWin's last stage with position=lepe.

    Tokens beside the map attend and are attended to as those on it.
    """

    def run(self, x: Tensor, backend: Reference, tokens: Tensor | None = None) -> Any:
        if tokens is None:
            return super().run(x, backend)
        (groups,), t = self.branch_groups(*map_size(x)), tokens.shape[1]
        both = torch.cat([tokens, x.flatten(1, 2)], dim=1)  # (b, t + h w, c)
        q, k, v = (part.unsqueeze(1) for part in self.project(both))  # (b, 1, t + h w, c) each
        branch = cast("Branch", self.branches[0])
        y = self.proj(branch.with_tokens((q, k, v), groups, t))  # (b, 1, t + h w, c)
        return y[:, 0, t:].unflatten(1, map_size(x)), y[:, 0, :t]

    def cost(self, h: int, w: int, tokens: int = 0) -> Cost:
        (groups,) = self.branch_groups(h, w)
        projections = Cost(4 * (h * w + tokens) * self.dim * self.dim, 0)
        return add_costs(projections, cast("Branch", self.branches[0]).cost(groups, tokens))

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        return (Groups(axis(h, h), axis(w, w)),)
