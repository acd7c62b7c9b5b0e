"""Alternatives to the cyclic shift as mixers beside `window` (Swin, section 4.3, Table 5).

    padded    shifted windows without a cyclic shift: masked pads complete the windows at the
              edges, so that there are more windows, all of one size
    flex      `neighbourhood`, a window around every query, by FlexAttention with a block mask

Any command takes both by `--plugin benchmarks.neighbours`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import SpecError, register
from attention.configs.neighbours import NeighbourhoodConfig
from attention.configs.windows import WindowConfig
from attention.execution.backends import Reference
from attention.geometry.axis import shifted_by_pads
from attention.geometry.groups import Groups
from attention.mixer import map_size
from attention.mixers.neighbours import NeighbourhoodMixer, observed
from attention.softmax.layers import PadFirst
from transom.fields import choice, option, read_flag


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


# -- a window around every query ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FlexConfig(NeighbourhoodConfig):
    """Options of `neighbourhood`, which FlexAttention computes here."""

    position: str = option("bias", choice("none", "bias"), "bias: relative table")


@register("flex", config=FlexConfig)
class FlexMixer(NeighbourhoodMixer):
    """Equals `neighbourhood` on the same parameters: FlexAttention over all tokens of the map, with
    a block mask of the pairs that attend."""

    config: FlexConfig

    def __init__(self, config: FlexConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self._masks: dict[Any, Any] = {}

    def run(self, x: Tensor, backend: Reference) -> Tensor:
        h, w = map_size(x)
        hp, wp = self.padded(h, w)
        if observed(x):
            return super().run(x, backend)  # the products are those of the definition
        if x.device.type == "cpu" and torch.is_grad_enabled():
            raise SpecError(f"{self.config}: FlexAttention has no backward pass on a CPU")
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h))
        q, k, v = self.project(x)  # (b, hp, wp, c) each
        y = self.proj(self._flex(q, k, v, (hp, wp)))
        return y[:, :h, :w]

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (b, h, w, c) -> (b, h, w, c), with a mask for each size and device."""
        if (key := (size, q.device)) not in self._masks:
            self._masks[key] = self._mask(size, q.device)
        rows, cols, mask = self._masks[key]
        q, k, v = (
            t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)
        )  # (b, m, h w, d) each
        bias = self.branch.bias
        table = q.new_zeros(1, self.heads) if bias is None else bias.steps((0, 0)).to(q.dtype)
        w, side = size[1], 2 * self.config.kernel - 1 if bias is not None else 0

        def add_bias(score: Tensor, b: Tensor, m: Tensor, query: Tensor, key: Tensor) -> Tensor:
            row, col = rows[query // w, key // w], cols[query % w, key % w]
            return score + table[row * side + col * min(side, 1), m]

        out = _compiled()(q, k, v, score_mod=add_bias, block_mask=mask, scale=self.branch.scale)
        return out.transpose(1, 2).flatten(2).unflatten(1, size)

    def _mask(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Any]:
        """(rows, cols, mask): the steps along each axis, and the block mask of a padded map."""
        from torch.nn.attention.flex_attention import create_block_mask

        kernel, dilation = self.config.kernel, self.config.dilation
        (rows, by_row), (cols, by_col) = (steps(n, kernel, dilation, device) for n in size)
        n, w = size[0] * size[1], size[1]

        def attends(b: Tensor, m: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return by_row[query // w, key // w] & by_col[query % w, key % w]

        return rows, cols, create_block_mask(attends, None, None, n, n, device=str(device))


def steps(
    length: int, kernel: int, dilation: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The pairs (query, key) of an axis (NAT, section 3.1; DiNAT, section 3).

    Returns:
        (length, length) int, the row of a relative table of query - key, and (length, length)
        bool, true where the key is in the query's window, which borders move inward.
    """
    place = torch.arange(length, device=device)
    phase, number = place % dilation, place // dilation  # tokens that are dilation apart
    count = (length - phase + dilation - 1) // dilation  # of them
    first = torch.minimum((number - kernel // 2).clamp(min=0), count - kernel)
    inside = (number >= first[:, None]) & (number < first[:, None] + kernel)
    step = number[:, None] - number + kernel - 1
    return step.clamp(0, 2 * kernel - 2), inside & (phase[:, None] == phase)


def _compiled() -> Any:
    """FlexAttention, compiled, since without torch.compile it holds all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
