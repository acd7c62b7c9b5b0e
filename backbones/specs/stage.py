"""Specification of one stage: immutable plain data, validated on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attention.configs.beside import MessengerConfig
from attention.configs.config import MixerConfig
from attention.configs.notation import parse
from transom.errors import SpecError
from transom.fields import option, read_count, read_count_or_zero, read_fields, read_number

LONGEST_PATTERN, DEEPEST_STAGE = 64, 1024


def _read_ratio(value: Any) -> float:
    ratio = read_number(value)
    if not 0 < ratio <= 64:
        raise ValueError("a ratio above 0, at most 64")
    return ratio


def _read_depth(value: Any) -> int:
    depth = read_count(value)
    if depth > DEEPEST_STAGE:
        raise ValueError(f"a whole number from 1 to {DEEPEST_STAGE}")
    return depth


def read_pattern(value: Any) -> tuple[MixerConfig, ...]:
    """Reads the mixers that blocks cycle over: ``"window+axial"``, or notations or configs."""
    parts = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not 1 <= len(parts) <= LONGEST_PATTERN:
        raise ValueError(f"1 to {LONGEST_PATTERN} mixers such as 'window:size=7+axial'")
    for part in parts:
        if not isinstance(part, (str, MixerConfig)):
            raise ValueError("mixers such as 'window:size=7+axial'")
    return tuple(parse(part) if isinstance(part, str) else part for part in parts)


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage: `depth` blocks of one width; block i has mixer i modulo the pattern's length.

    Args:
        dim: channels.
        depth: blocks, 1 to 1024.
        heads: heads of every mixer.
        mixers: the pattern that the blocks cycle over, ``"window+axial"`` or a list of configs.
        mlp_ratio: hidden channels of the MLP in units of `dim`.
        tokens: learned tokens that stand beside the map, from the start of the stage to its end:
            class tokens and registers (ViT).  Mixers that take none leave them to the MLP.

    Raises:
        SpecError: a field has a value that is not allowed, or a mixer cannot have this `dim` and
            these `heads`.

    Example:
        >>> from backbones import StageSpec
        >>> stage = StageSpec(dim=96, depth=3, heads=4, mixers="window:size=8+axial")
        >>> [(str(config), index) for config, index in stage.blocks()]
        [('window:size=8', 0), ('axial', 0), ('window:size=8', 1)]
    """

    dim: int = option(96, read_count, "channels")
    depth: int = option(2, _read_depth, "blocks")
    heads: int = option(3, read_count, "heads of every mixer")
    mixers: tuple[MixerConfig, ...] = option((), read_pattern, "pattern that blocks cycle over")
    mlp_ratio: float = option(4.0, _read_ratio, "hidden channels of the MLP, in widths")
    tokens: int = option(
        0, read_count_or_zero, "learned tokens beside the map: class tokens, registers"
    )

    def __post_init__(self) -> None:
        read_fields(self, "a stage")
        for mixer in self.mixers:
            mixer.check(self.dim, self.heads)
        if self.tokens and not any(mixer.takes_tokens for mixer in self.mixers):
            raise SpecError(
                f"tokens={self.tokens}: no mixer of {self.pattern()} mixes tokens beside the map; "
                "full and sra do; without tokens it is tokens=0, and pool=mean of the backbone"
            )
        windows = {(m.size, m.region) for m in self.mixers if isinstance(m, MessengerConfig)}
        if len(windows) > 1 or (windows and self.tokens):
            raise SpecError(
                f"{self.pattern()}: messengers stand beside the map, so that all have one size "
                "and region, and tokens=0"
            )

    @property
    def messenger(self) -> MessengerConfig | None:
        """The config whose messengers stand beside the map of this stage, if one does."""
        return next((m for m in self.mixers if isinstance(m, MessengerConfig)), None)

    def tokens_beside(self, h: int, w: int) -> int:
        """Tokens beside an (h, w) map of this stage."""
        if self.messenger is None:
            return self.tokens
        rows, columns = self.messenger.windows(h, w)
        return rows * columns

    @property
    def hidden(self) -> int:
        return int(self.dim * self.mlp_ratio)

    def blocks(self) -> list[tuple[MixerConfig, int]]:
        """(config, index) of every block; index counts the earlier blocks of an equal config."""
        configs = [self.mixers[i % len(self.mixers)] for i in range(self.depth)]
        return [(config, configs[:i].count(config)) for i, config in enumerate(configs)]

    def pattern(self) -> str:
        return "+".join(map(str, self.mixers))
