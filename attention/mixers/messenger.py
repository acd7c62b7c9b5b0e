"""Windows, each with a messenger token beside the map (MSG-Transformer, section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attention.configs.beside import MessengerConfig
from attention.configs.registry import register
from attention.execution.backends import Reference
from attention.geometry import inputs
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.geometry.symbolic import copied, narrow, round_up
from attention.mixer import map_size
from attention.softmax.layers import PadFirst
from transom.errors import SpecError


@register("messenger", config=MessengerConfig)
class MessengerMixer(PadFirst):
    """Attention inside windows that are never shifted, each with its messenger.

    After the residual the messengers of region x region windows exchange channels, so that a
    window hears of others.  The messengers stand row by row, one for each window of the padded
    map.  On a map without messengers the mixer is attention inside the windows alone.
    """

    config: MessengerConfig

    def __init__(self, config: MessengerConfig, *, dim: int, heads: int, index: int = 0) -> None:
        super().__init__(config, dim=dim, heads=heads, index=index)
        self.messenger_bias: nn.Parameter | None = None
        if config.position == "bias":  # of the messenger as a key, and as a query
            self.messenger_bias = nn.Parameter(torch.zeros(heads, 2))
            nn.init.trunc_normal_(self.messenger_bias, std=0.02)

    def groups(self, h: int, w: int) -> Groups:
        return Groups(axis(h, self.config.size[0]), axis(w, self.config.size[1]))

    def run(self, x: Tensor, backend: Reference, tokens: Tensor | None = None) -> Any:
        if tokens is None:
            return super().run(x, backend)
        groups = self.groups(*map_size(x))
        if not inputs.in_graph() and tokens.shape[1] != groups.n:
            raise SpecError(
                f"{self.config}: {tokens.shape[1]} messengers for a map of {groups.n} windows"
            )
        both = torch.cat([tokens.unsqueeze(2), groups.partition(x)], dim=2)  # (b, n, 1 + l, c)
        y = self.branch.with_tokens(self.project(both), groups, 1, self.messenger_bias)
        y = self.proj(y)  # (b, n, 1 + l, c)
        return groups.reverse(y[:, :, 1:]), y[:, :, 0]

    def exchange(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(b, n, c) -> (b, n, c): part i of the channels of all messengers of a region goes to
        its messenger i.  Regions that reach over the map are filled with zeros."""
        groups, r = self.groups(h, w), self.config.region
        if r == 1:
            return tokens
        nh, nw = groups.rows.n, groups.cols.n
        x = tokens.unflatten(1, (nh, nw))  # (b, nh, nw, c)
        x = F.pad(x, (0, 0, 0, round_up(nw, r) - nw, 0, round_up(nh, r) - nh))
        x = x.unflatten(3, (r, r, -1)).unflatten(2, (-1, r)).unflatten(1, (-1, r))
        x = copied(rearrange(x, "b rh gh rw gw kh kw c -> b rh kh rw kw gh gw c"))
        x = x.flatten(5).flatten(3, 4).flatten(1, 2)  # as padded
        return copied(narrow(narrow(x, 1, 0, nh), 2, 0, nw)).flatten(1, 2)
