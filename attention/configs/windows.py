"""The configs of mixers whose groups are windows of a stated size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attention.configs.config import MixerConfig
from attention.configs.softmax import (
    SIZE,
    SoftmaxConfig,
    mask_padding_option,
    position_option,
    scores_option,
)
from transom.errors import SpecError
from transom.fields import option, optional, read_count, read_flag, read_number, read_size


def _shrunk_window(config, h: int, w: int, rule: str):
    """The config for an (h, w) map that a window may cover.

    rule: shrink_both is the authors' rule, shrink_axis timm's; pad changes nothing.
    """
    gh, gw = config.size
    if rule == "shrink_axis":
        size = min(gh, h), min(gw, w)
        covered = h <= gh and w <= gw
        return replace(config, size=size, shift=False) if covered else replace(config, size=size)
    if rule == "shrink_both":
        if gh != gw:
            raise SpecError(f"{config}: small_maps=shrink_both is a rule for square windows")
        if min(h, w) <= gh:
            return replace(config, size=min(h, w), shift=False)
    return config


@dataclass(frozen=True, kw_only=True)
class WindowConfig(SoftmaxConfig):
    """Options of windows, every second block shifted.

    Source: Swin Transformer (Liu et al. 2021, arXiv 2103.14030), section 3.2.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    shift: bool = option(True, read_flag, "every second block shifts its windows by half")
    position: str = position_option("bias")
    mask_value: float | None = option(
        None, optional(read_number), "added to pairs that the shift parts; none: -inf, exact"
    )
    mask_padding: bool = mask_padding_option()

    shrink = _shrunk_window

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position == "lepe" and self.shift:
            raise SpecError(
                f"{self}: position=lepe would read across the seam of a cyclic shift; "
                "add shift=false"
            )
        if self.mask_value is not None and self.mask_value >= 0:
            raise SpecError(f"{self}: mask_value must be negative")


@dataclass(frozen=True, kw_only=True)
class CosineConfig(WindowConfig):
    """Options of windows with cosine scores and log-spaced positions.

    Source: Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883), sections 3.2 and 3.3.
    """

    scores: str = scores_option("cosine")
    position: str = position_option("log_cpb")


@dataclass(frozen=True, kw_only=True)
class ShuffleConfig(SoftmaxConfig):
    """Options of windows and dilated windows in turn.

    Source: Shuffle Transformer (Huang et al., arXiv 2106.03650), section 3.2; with interval
    CrossFormer (Wang et al. 2021, arXiv 2108.00154), section 3.2.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    interval: int | None = option(
        None, optional(read_count), "distance of the tokens of a dilated window; none: the largest"
    )
    position: str = position_option("bias")
    mask_padding: bool = mask_padding_option()

    def shrink(self, h: int, w: int, rule: str) -> ShuffleConfig:
        """With an interval the authors' code has one plain window on maps that a window covers."""
        gh, gw = self.size
        if rule == "shrink_both" and self.interval is not None and gh == gw and min(h, w) <= gh:
            return replace(self, size=(min(h, w), min(h, w)), interval=1)
        return self


@dataclass(frozen=True, kw_only=True)
class TokenMLPConfig(MixerConfig):
    """Options of a learned matrix over the tokens of a window.

    Source: Swin-MLP, models/swin_mlp.py of microsoft/Swin-Transformer; with hidden MLP-Mixer
    (Tolstikhin et al. 2021, arXiv 2105.01601), section 2, where one window is the map.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    shift: bool = option(True, read_flag, "every second block moves its windows by half")
    hidden: int | None = option(
        None, optional(read_count), "two matrices with GELU between them, over so many values"
    )

    shrink = _shrunk_window
