"""Pale-shaped attention (Wu et al. 2022, arXiv 2112.14000): a reconstruction.

The authors published no code.  From the abstract and the reviews (text): tokens attend inside
groups of interlaced rows and of interlaced columns, in parallel.  Inferred from the published
parameters and FLOPs (numbers): query, key and value are each a depthwise 3x3 convolution, a norm
and a pointwise layer at full width; the map is padded before them and cropped before the output
projection.  Open: heads per direction (here half of them each), which layers have biases, the
side of the padding (here bottom and right, not masked unless mask_padding).
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attention.configs.lines import PaleConfig
from attention.configs.registry import register
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.geometry.symbolic import round_up
from attention.mixer import TokenMixer, map_size
from attention.softmax.branch import Branch, projection
from attention.softmax.layers import add_costs, in_branches, refusal_of

KERNEL = 3


class SeparableProjection(nn.Module):
    """Depthwise 3x3, batch norm, pointwise: (b, h, w, c) -> (b, h, w, c)."""

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.pointwise = projection(dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(rearrange(x, "b h w c -> b c h w")))  # (b, c, h, w)
        return self.pointwise(rearrange(y, "b c h w -> b h w c"))  # (b, h, w, c)


@register("pale", config=PaleConfig)
class PaleMixer(TokenMixer):
    """Half the heads attend inside groups of `size[0]` interlaced rows, half inside groups of
    `size[1]` interlaced columns."""

    config: PaleConfig

    def __init__(self, config: PaleConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        key_bias = config.qkv_bias and config.scores == "dot"
        self.q = SeparableProjection(dim, bias=config.qkv_bias)
        self.k = SeparableProjection(dim, bias=key_bias)
        self.v = SeparableProjection(dim, bias=config.qkv_bias)
        self.branches = nn.ModuleList(
            Branch(config, dim=dim // 2, heads=heads // 2) for _ in range(2)
        )
        self.proj = projection(dim, dim)

    def branch_groups(self, h: int, w: int) -> tuple[Groups, ...]:
        """The groups of the rows' and of the columns' branch, on one map padded to whole pales."""
        sh, sw = self.config.size
        hp, wp = round_up(h, sh), round_up(w, sw)
        rows = Groups(axis(h, sh, interlaced=True), axis(w, wp, padded=wp))
        cols = Groups(axis(h, hp, padded=hp), axis(w, sw, interlaced=True))
        return rows, cols

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        groups = self.branch_groups(*map_size(x))
        x = groups[0].pad(x)  # (b, hp, wp, c); both branches pad alike
        qkv = self.q(x), self.k(x), self.v(x)  # (b, hp, wp, c) each
        y = in_branches(self.branches, qkv, groups, self.branch_groups(*map_size(x)), backend)
        return self.proj(groups[0].crop(y))  # (b, h, w, c)

    def kernel_refusal(self, x: Tensor) -> str | None:
        return refusal_of(self.branch_groups(*map_size(x)), x, self.heads)

    def cost(self, h: int, w: int) -> Cost:
        groups = self.branch_groups(h, w)
        per_token = 3 * (self.dim * self.dim + KERNEL * KERNEL * self.dim)  # q, k and v
        pads = groups[0].tokens - h * w
        inputs = Cost(groups[0].tokens * per_token, 0, 0, pads * per_token)
        output = Cost(h * w * self.dim * self.dim, 0)
        pairs = zip(cast("list[Branch]", self.branches), groups, strict=True)
        return add_costs(inputs, output, *(b.cost(branch_groups) for b, branch_groups in pairs))

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """The query's two groups on the padded map, dilated by the convolution.

        Pads stay in until the crop, because one of them may stand next to a real token.
        """
        sh, sw = self.config.size
        hp, wp = round_up(h, sh), round_up(w, sw)
        rows, cols = self.branch_groups(hp, wp)
        met = rows.region(query) | cols.region(query)
        if self.config.mask_padding:
            met[h:], met[:, w:] = False, False
        reach = F.max_pool2d(met[None].float(), KERNEL, stride=1, padding=KERNEL // 2)[0] > 0
        return reach[:h, :w]
