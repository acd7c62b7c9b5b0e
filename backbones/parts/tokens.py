"""Learned tokens that stand beside the map of a stage, and the one sequence that both form.

Norms, MLPs, scales and stochastic depth do not tell a token of the map from one beside it, so
that a block takes both as a map of one row, (b, 1, t + h w, c), with the tokens beside it first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention.configs.beside import MessengerConfig
from attention.geometry.symbolic import in_graph_copied
from attention.mixer import map_size
from backbones.parts.position import make_position
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec


def join(x: Tensor, tokens: Tensor) -> Tensor:
    """Map (b, h, w, c) and tokens (b, t, c) -> (b, 1, t + h w, c)."""
    return torch.cat([tokens, in_graph_copied(x).flatten(1, 2)], dim=1).unsqueeze(1)


def part(both: Tensor, size: tuple[int, int], tokens: int) -> tuple[Tensor, Tensor]:
    """The inverse of `join`.

    size: (h, w) of the map.  tokens: beside it.
    """
    x, beside = map(in_graph_copied, (both[:, 0, tokens:], both[:, 0, :tokens]))
    return x.unflatten(1, size), beside


class ClassTokens(nn.Module):
    """Class tokens and registers, with positions of their own if those of the map are absolute.

    Source: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929), section 3.1; registers Darcet et al.
    2024 (arXiv 2309.16588).  The first is the one that is read.
    """

    def __init__(self, spec: BackboneSpec, stage: StageSpec) -> None:
        super().__init__()
        self.tokens = make_position(stage.tokens, stage.dim)
        absolute = spec.position in ("absolute", "absolute_stages")
        own = absolute and spec.token_position
        self.position = make_position(stage.tokens, stage.dim) if own else None

    def forward(self, x: Tensor) -> Tensor:
        """Those beside a map (b, h, w, c): (b, t, c)."""
        tokens = self.tokens if self.position is None else self.tokens + self.position
        return tokens.to(x.dtype).repeat(x.shape[0], 1, 1)

    def read(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """What the head pools of tokens (b, t, c): (b, 1, 1, c)."""
        return tokens[:, None, :1]


class Messengers(nn.Module):
    """A messenger for each window of a map.

    Source: MSG-Transformer (Fang et al. 2022, arXiv 2105.15168), section 3, and
    models/msg_transformer.py of hustvl/MSG-Transformer: those of a region of windows are learned,
    and every region begins with them; later stages downsample them as their map.

    Args:
        config: tells the windows, and how many a region has.
        dim: channels.
        begin: whether they begin here, and do not come from the stage before.
    """

    def __init__(self, config: MessengerConfig, dim: int, *, begin: bool) -> None:
        super().__init__()
        self.config = config
        self.tokens = make_position(config.region**2, dim) if begin else None

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Those beside a map (b, h, w, c): (b, t, c).

        before: (b, nh, nw, c), those of the stage before, downsampled.
        """
        if before is not None:
            return before.flatten(1, 2)
        assert self.tokens is not None
        region, sides = self.config.region, self.config.windows(*map_size(x))
        rows, columns = (torch.arange(n, device=x.device) % region for n in sides)
        start = self.tokens.to(x.dtype).unflatten(1, (region, region))  # (1, r, r, c)
        start = start.index_select(1, rows).index_select(2, columns)  # (1, nh, nw, c)
        return start.flatten(1, 2).repeat(x.shape[0], 1, 1)

    def read(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """What the next stage or the head takes of tokens (b, t, c): (b, nh, nw, c)."""
        return tokens.unflatten(1, self.config.windows(*size))


def make_tokens(spec: BackboneSpec, i: int) -> ClassTokens | Messengers | None:
    """The tokens beside the map of stage i, from 0."""
    stage = spec.stages[i]
    if stage.messenger is not None:
        begin = i == 0 or not spec.goes_on(i - 1)
        return Messengers(stage.messenger, stage.dim, begin=begin)
    return ClassTokens(spec, stage) if stage.tokens else None
