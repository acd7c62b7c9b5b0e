"""Alternatives to the cyclic shift as mixers beside `window` (Swin, section 4.3, Table 5).

    padded    shifted windows without a cyclic shift: masked pads complete the windows at the
              edges, so that there are more windows, all of one size
    sliding   a neighbourhood around every query, as in earlier local attention; way=unfold gathers
              the keys of every query, way=flex is FlexAttention with a block mask

Any command takes both by `--plugin benchmarks.neighbours`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import Cost, MixerConfig, SpecError, TokenMixer, register
from attention.configs.softmax import SIZE
from attention.configs.windows import WindowConfig
from attention.geometry.axis import shifted_by_pads
from attention.geometry.groups import Groups
from attention.mixer import map_size
from attention.softmax.layers import PadFirst
from transom.fields import choice, option, read_flag, read_size


@dataclass(frozen=True, kw_only=True)
class PaddedConfig(WindowConfig):
    mask_padding: bool = option(True, read_flag, "hide pad tokens; without it windows differ")


@register("padded", config=PaddedConfig)
class PaddedMixer(PadFirst):
    """Equals `window` on the same parameters, wherever windows divide the map."""

    config: PaddedConfig

    def groups(self, h: int, w: int) -> Groups:
        gh, gw = self.config.size
        odd = self.config.shift and self.index % 2
        rows, columns = (
            shifted_by_pads(length, extent, extent // 2 if odd else 0)
            for length, extent in ((h, gh), (w, gw))
        )
        return Groups(rows, columns)


# -- sliding windows -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SlidingConfig(MixerConfig):
    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    way: str = option("unfold", choice("unfold", "flex"), "how keys are found: gathered, or masked")


@register("sliding", config=SlidingConfig)
class SlidingMixer(TokenMixer):
    """Attention of query (i, j) over the tokens of the map in the gh x gw window that starts at
    (i - gh // 2, j - gw // 2), with a learned bias per offset and head."""

    config: SlidingConfig

    def __init__(self, config: SlidingConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.empty(config.size[0] * config.size[1], heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self._masks: dict[Any, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        h, w = map_size(x)  # x: (b, h, w, c)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # (b, h, w, m, d)
        if q.dtype == torch.float16:  # products would overflow
            q, k, v = q.float(), k.float(), v.float()
        q = q * q.shape[-1] ** -0.5
        attend = self._flex if self.config.way == "flex" else self._unfold
        y = attend(q, k, v, h, w)  # (b, h, w, m, d), or (b, hw, m, d) of flex
        return self.proj(y.reshape(x.shape).to(x.dtype))  # (b, h, w, c)

    def _unfold(self, q: Tensor, k: Tensor, v: Tensor, h: int, w: int) -> Tensor:
        windows = (self._windows(t.flatten(-2)) for t in (k, v))  # (b, h, w, c, l), l = gh * gw
        k, v = (t.unflatten(-2, (self.heads, -1)) for t in windows)  # (b, h, w, m, d, l)
        on_map = self._windows(torch.ones(1, h, w, 1, device=q.device))[..., 0, :] > 0
        # on_map: (1, h, w, l)
        bias = self.table.T.to(q.dtype)[None, None, None]  # (1, 1, 1, m, l)
        scores = torch.einsum("bhwmd,bhwmdl->bhwml", q, k) + bias
        weights = scores.masked_fill(~on_map[..., None, :], -torch.inf).softmax(-1)
        return torch.einsum("bhwml,bhwmdl->bhwmd", weights, v)

    def _windows(self, x: Tensor) -> Tensor:
        """(b, h, w, c) -> (b, h, w, c, gh * gw): the neighbourhood of every token, zeros off it."""
        gh, gw = self.config.size
        top, left = gh // 2, gw // 2
        x = F.pad(x, (0, 0, left, gw - 1 - left, top, gh - 1 - top))  # (b, h+gh-1, w+gw-1, c)
        return x.unfold(1, gh, 1).unfold(2, gw, 1).flatten(-2)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, h: int, w: int) -> Tensor:
        if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
            raise SpecError(f"{self.config}: FlexAttention has no backward pass on a CPU")
        gh, gw = self.config.size
        table, top, left = self.table, gh // 2, gw // 2

        def offset(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            return key // w - query // w + top, key % w - query % w + left

        def in_window(b: Tensor, m: Tensor, query: Tensor, key: Tensor) -> Tensor:
            row, col = offset(query, key)
            return (row >= 0) & (row < gh) & (col >= 0) & (col < gw)

        def add_bias(score: Tensor, b: Tensor, m: Tensor, query: Tensor, key: Tensor) -> Tensor:
            row, col = offset(query, key)
            return score + table[row.clamp(0, gh - 1) * gw + col.clamp(0, gw - 1), m]

        from torch.nn.attention.flex_attention import create_block_mask

        shape = (h, w, q.device)
        if shape not in self._masks:
            n = h * w
            self._masks[shape] = create_block_mask(
                in_window, None, None, n, n, device=str(q.device)
            )
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (b, m, hw, d)
        out = _compiled()(q, k, v, score_mod=add_bias, block_mask=self._masks[shape], scale=1.0)
        return out.transpose(1, 2)  # (b, hw, m, d)

    def cost(self, h: int, w: int) -> Cost:
        """Cost of gh * gw keys per query; keys off the map are the padding."""
        (gh, gw), square = self.config.size, self.dim * self.dim
        pairs, real = h * w * gh * gw, _pairs_on_map(h, gh) * _pairs_on_map(w, gw)
        return Cost(4 * h * w * square, 2 * pairs * self.dim, 0, 2 * (pairs - real) * self.dim)

    def region(self, h: int, w: int, query: tuple[int, int]) -> Tensor:
        rows, cols = (
            torch.tensor([0 <= key - q + extent // 2 < extent for key in range(length)])
            for q, extent, length in zip(query, self.config.size, (h, w), strict=True)
        )
        return rows[:, None] & cols


def _pairs_on_map(length: int, extent: int) -> int:
    """Number of pairs (query, key) of an axis whose key is in the window and on the axis."""
    return sum(
        0 <= key - query + extent // 2 < extent
        for query in range(length) for key in range(max(0, query - extent), length)
        if key <= query + extent
    )  # fmt: skip


def _compiled() -> Any:
    """FlexAttention, compiled, since without torch.compile it holds all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
