"""Deformable attention (DAT, section 3.2): keys at points that the queries choose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attention.configs.registry import register
from attention.configs.sampled import DeformableConfig
from attention.cost import Cost
from attention.execution.backends import Reference
from attention.geometry.symbolic import copied
from attention.mixer import TokenMixer, map_size
from attention.softmax.branch import projection
from attention.softmax.scores import Scores


class Offsets(nn.Module):
    """A depthwise convolution, norm, GELU and a pointwise layer: queries to offsets of points.

    (b, h, w, c) to (b, rows, columns, 2), the row's offset first.
    """

    def __init__(self, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.padding = kernel // 2 if kernel != stride else 0
        self.depthwise = nn.Conv2d(dim, dim, kernel, stride, self.padding, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.pointwise = nn.Linear(dim, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = copied(rearrange(x, "b h w c -> b c h w"))  # a graph with free sizes orders no strides
        short = [max(self.kernel - 2 * self.padding - side, 0) for side in x.shape[2:]]
        if any(short):  # a map smaller than the kernel has one point
            x = F.pad(x, (0, short[1], 0, short[0]))
        y = rearrange(self.depthwise(x), "b c h w -> b h w c")
        return self.pointwise(F.gelu(self.norm(y)))  # (b, rows, columns, 2)

    def points(self, side: int) -> int:
        """Points along an axis of `side` tokens."""
        return max((side + 2 * self.padding - self.kernel) // self.stride, 0) + 1


def unit(index: Tensor, count: int) -> Tensor:
    """Indices on an axis of `count` points in the coordinates of `grid_sample`: -1 to 1."""
    return 2 * index / max(count - 1, 1) - 1


def grid(rows: Tensor, columns: Tensor) -> Tensor:
    """(rows, columns, 2): every pair of coordinates, the row's first."""
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def sampled(images: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of images (b, c, h, w) at points (b, ..., ..., 2); outside are zeros."""
    xy = points.flip(-1)  # grid_sample takes the column first
    wide = torch.promote_types(images.dtype, torch.float32)  # half precision has no sampler
    out = F.grid_sample(images.to(wide), xy.to(wide), align_corners=True)
    return out.to(images.dtype)


@register("deformable", config=DeformableConfig)
class DeformableMixer(TokenMixer):
    """Every query attends to the same points, which lie on the map where the queries put them.

    The points of a group of channels are a regular grid, moved by offsets that `Offsets` computes
    from the queries.  The regular grid is the authors': (i + 0.5) / (n - 1), which reaches beyond
    the map's last token.  Keys and values are projected from bilinear samples of the input.
    """

    config: DeformableConfig
    data_dependent = True

    def __init__(
        self, config: DeformableConfig, *, dim: int, heads: int, index: int = 0
    ) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        cosine = config.scores == "cosine"  # then keys have no bias, as in every mixer
        self.q = projection(dim, dim, bias=config.qkv_bias)
        self.k = projection(dim, dim, bias=config.qkv_bias and not cosine)
        self.v = projection(dim, dim, bias=config.qkv_bias)
        self.offsets = Offsets(dim // config.groups, config.kernel, config.stride)
        self.scores = Scores(config, dim=dim, heads=heads)
        self.proj = projection(dim, dim)
        self.table: nn.Parameter | None = None
        self.conv: nn.Conv2d | None = None
        if config.position == "bias":
            rows, columns = (2 * side - 1 for side in config.table)
            self.table = nn.Parameter(torch.zeros(heads, rows, columns))
            nn.init.trunc_normal_(self.table, std=0.01)
        elif config.position == "conv":
            self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = map_size(x)
        return backend.over_images(self._attend, x, image_bytes=h * w * self.dim * x.element_size())

    def _attend(self, x: Tensor) -> Tensor:
        h, w = map_size(x)
        groups = self.config.groups
        q = self.q(x)  # (b, h, w, c)
        points = self.points(q)  # (b * g, rows, columns, 2)
        parts = copied(rearrange(x, "b h w (g c) -> (b g) c h w", g=groups))
        found = rearrange(sampled(parts, points), "(b g) c h w -> b (h w) (g c)", g=groups)
        k, v = self.k(found), self.v(found)  # (b, keys, c) each
        q_of, k, v = (t.unsqueeze(0) for t in (q.flatten(1, 2), k, v))  # an image is a group
        y = self.scores.attend(q_of, k, v, self.bias(points, h, w))  # (1, b, h w, c)
        y = y.squeeze(0).unflatten(1, (h, w))  # (b, h, w, c)
        if self.conv is not None:
            y = y + self.conv(q.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(y)

    def points(self, q: Tensor) -> Tensor:
        """(b * g, rows, columns, 2): where the keys of every image and group lie, in -1 to 1."""
        groups = rearrange(q, "b h w (g c) -> (b g) h w c", g=self.config.groups)
        wide = torch.promote_types(q.dtype, torch.float32)  # points in half precision jump
        offsets = self.offsets(groups).to(wide)  # (b * g, rows, columns, 2)
        counts = offsets.shape[1:3]
        places = (torch.arange(n, device=q.device, dtype=wide) for n in counts)
        regular = grid(*(unit(p + 0.5, n) for p, n in zip(places, counts, strict=True)))
        if self.config.reach is None:
            return (regular + offsets).clamp(-1, 1)
        steps = torch.tensor([1 / max(n - 1, 1) for n in counts], dtype=wide, device=q.device)
        return regular + offsets.tanh() * steps * self.config.reach

    def bias(self, points: Tensor, h: int, w: int) -> Tensor | None:
        """(b, heads, h * w, keys): the table at half the step from every point to every query."""
        if self.table is None:
            return None
        place = [torch.arange(n, device=points.device, dtype=points.dtype) for n in (h, w)]
        queries = grid(unit(place[0], h), unit(place[1], w)).flatten(0, 1)  # (h w, 2)
        steps = (queries[:, None] - points.flatten(1, 2)[:, None]) / 2  # (b * g, h w, keys, 2)
        groups = self.config.groups
        table = self.table.unflatten(0, (groups, -1))  # (g, heads / g, rows, columns)
        tables = table.repeat(points.shape[0] // groups, 1, 1, 1)  # (b * g, ...)
        return copied(rearrange(sampled(tables, steps), "(b g) m q k -> b (g m) q k", g=groups))

    def cost(self, h: int, w: int) -> Cost:
        keys = self.offsets.points(h) * self.offsets.points(w)
        square, position = self.dim * self.dim, 0
        layers = 2 * (h * w + keys) * square  # q and proj, k and v
        layers += keys * self.dim * (self.config.kernel**2 + 2)  # of the offsets
        if self.conv is not None:
            position = h * w * self.conv.weight.numel()
        return Cost(layers, 2 * h * w * keys * self.dim, position)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        """All tokens: offsets, and with them the keys, depend on the data."""
        return torch.ones(h, w, dtype=torch.bool)
