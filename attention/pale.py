"""Pale-shaped attention (Wu et al. 2022, arXiv 2112.14000): a reconstruction.

The authors published no code.  From the abstract and the reviews (text): tokens attend inside
groups of interlaced rows and of interlaced columns, in parallel.  Inferred from the published
parameters and FLOPs (numbers): query, key and value are each a depthwise 3x3 convolution, a norm
and a pointwise layer at full width; the map is padded before them and cropped before the output
projection.  Open: heads per direction (here half of them each), which layers have biases, the
side of the padding (here bottom and right, visible unless mask_padding).
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attention import fast, learning, products
from attention.attend import add_costs
from attention.branch import Branch, projection
from attention.configs import PaleConfig
from attention.folding import Keeper
from attention.groups import Groups, axis
from attention.mixer import TokenMixer, map_size
from attention.registry import Cost, register
from attention.sizes import whole

KERNEL = 3


class SeparableProjection(Keeper):
    """Depthwise 3x3, batch norm, pointwise: (b, h, w, c) -> (b, h, w, c)."""

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.pointwise = projection(dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.spread(x))

    def spread(self, x: Tensor) -> Tensor:
        """All but the pointwise layer."""
        image = rearrange(x, "b h w c -> b c h w")
        return rearrange(self.norm(self.depthwise(image)), "b c h w -> b h w c")

    def learn(self, x: Tensor) -> Tensor:
        still = not (self.training or torch.is_grad_enabled())
        x = self.still(x) if still else self.spread(x)
        return learning.linear(x, self.pointwise.weight, self.pointwise.bias)

    def fast(self, x: Tensor) -> Tensor:
        weight = self.packed("pointwise", self.pointwise.weight)
        return products.linear(self.still(x), weight, self.pointwise.bias)

    def still(self, x: Tensor) -> Tensor:
        """`spread` where the norm's statistics stand still, so that the convolution holds it."""
        conv, norm = self.depthwise, self.norm
        sources = conv.weight, *norm.parameters(), norm.running_mean, norm.running_var
        weight, bias = self.once(("still", conv.weight.dtype), self._folded, *sources)
        image = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=KERNEL // 2, groups=len(bias))
        return image.permute(0, 2, 3, 1).contiguous()

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution and the norm in one."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = self.depthwise.weight * scale.view(-1, 1, 1, 1)
        return weight, norm.bias - norm.running_mean * scale


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
        self.proj = projection(dim)

    def cuts(self, h: int, w: int) -> tuple[Groups, ...]:
        """Both branches cut the map that is padded to whole pales."""
        sh, sw = self.config.size
        hp, wp = whole(h, sh), whole(w, sw)
        rows = Groups(axis(h, sh, interlaced=True), axis(w, wp, padded=wp))
        cols = Groups(axis(h, hp, padded=hp), axis(w, sw, interlaced=True))
        return rows, cols

    def forward(self, x: Tensor) -> Tensor:
        cuts = self.cuts(*map_size(x))
        if fast.unseen(x, self, self.proj):
            still = not (fast.learns(x, self) or self.training)
            return self._fast(x, cuts) if still else self._learn(x, cuts)
        x = cuts[0].pad(x)
        qkv = [project(x).chunk(2, dim=-1) for project in (self.q, self.k, self.v)]
        out = [
            branch.attend(q, k, v, groups)
            for branch, groups, q, k, v in zip(self.branches, cuts, *qkv, strict=True)
        ]
        return self.proj(cuts[0].crop(torch.cat(out, dim=-1)))

    def _fast(self, x: Tensor, cuts: tuple[Groups, ...]) -> Tensor:
        """The map is padded once and both branches order the padded one."""
        x = cuts[0].pad(x)
        own = [project.fast(x) for project in (self.q, self.k, self.v)]
        out = [self._alone(own, i, groups) for i, groups in enumerate(cuts)]
        y = cuts[0].crop(torch.cat(out, dim=-1).view(x.shape))
        return products.linear(y, self.packed("proj", self.proj.weight), self.proj.bias)

    def _alone(self, own: list[Tensor], i: int, groups: Groups) -> Tensor:
        """One branch, from queries, keys and values of the padded map to its channels: (b, tokens
        of the padded map, c)."""
        x, branch = own[0], cast(Branch, self.branches[i])
        whole, masks = self.cuts(*map_size(x))[i], branch.masks(groups, x)
        order = self.order(whole, x.device)
        # what is hidden is not a neighbour either
        real = self.order(groups, x.device) if branch.lepe and branch.hides(groups) else order
        mine = self.once(("share", i, whole, x.device), partial(order.share, i, 2, x.device))
        halves = [t.view(len(x), -1, branch.dim) for t in own]
        shape = -1, order.length, branch.heads, branch.dim // branch.heads

        def run(images: slice, part: slice, places: slice) -> Tensor:
            q, k, v = (mine.take(t[images], places) for t in halves)
            q, k, v = (t.view(shape) for t in (q, k, real.clear(v, places)))
            return branch.inside(q, k, v, groups, masks(part))

        return mine.over(x, 3 * branch.dim, run)

    def _learn(self, x: Tensor, cuts: tuple[Groups, ...]) -> Tensor:
        x = cuts[0].pad(x)
        q, k, v = (project.learn(x) for project in (self.q, self.k, self.v))
        parts = torch.cat([q, k, v], dim=-1).unflatten(3, (3, 2, -1)).unbind(4)
        branches, whole = cast("list[Branch]", self.branches), self.cuts(*x.shape[1:3])
        own = zip(branches, parts, cuts, whole, strict=True)
        out = [branch.learn_apart(qkv, groups, cut) for branch, qkv, groups, cut in own]
        y = cuts[0].crop(torch.cat(out, dim=-1))
        return learning.linear(y, self.proj.weight, self.proj.bias)

    def cost(self, h: int, w: int) -> Cost:
        cuts = self.cuts(h, w)
        each = 3 * (self.dim * self.dim + KERNEL * KERNEL * self.dim)  # q, k and v of a token
        pads = cuts[0].tokens - h * w
        inputs = Cost(cuts[0].tokens * each, 0, 0, pads * each)
        output = Cost(h * w * self.dim * self.dim, 0)
        branches = cast("list[Branch]", self.branches)
        costs = (b.cost(groups) for b, groups in zip(branches, cuts, strict=True))
        return add_costs(inputs, output, *costs)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """The two groups and the token itself, on the padded map, dilated by the convolution.

        Pads are kept until the crop: one of them may stand next to a real token.
        """
        sh, sw = self.config.size
        hp, wp = whole(h, sh), whole(w, sw)
        rows, cols = self.cuts(hp, wp)
        met = rows.region(query) | cols.region(query)
        if self.config.mask_padding:
            met[h:], met[:, w:] = False, False
        reach = F.max_pool2d(met[None].float(), KERNEL, stride=1, padding=KERNEL // 2)[0] > 0
        return reach[:h, :w]
