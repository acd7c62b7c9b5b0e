"""Options that the mixers of softmax attention share.

The groups (size, shift, order), the scores (scores) and the position terms (position) are
orthogonal; the defaults are the choices of each mixer's paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from attention.configs.config import MixerConfig
from transom.errors import SpecError
from transom.fields import choice, option, optional, read_flag, read_number, read_size

SIZE = "side of a window, stripe or pale: 7, or 7x14 with the height first"


def scores_option(default: str) -> str:
    return option(default, choice("dot", "cosine"), "how queries and keys are compared")


def position_option(default: str) -> str:
    read = choice("none", "bias", "log_cpb", "lepe", "dpb")
    doc = "bias: relative table; log_cpb: Swin V2; lepe: CSWin; dpb: CrossFormer"
    return option(default, read, doc)


def mask_padding_option() -> bool:
    return option(False, read_flag, "hide pad tokens instead of showing them as constant keys")


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(MixerConfig):
    """Configuration that all mixers with queries, keys and values share."""

    scores: str = scores_option("dot")
    qkv_bias: bool = option(True, read_flag, "bias of the query, key and value projections")
    qk_scale: float | None = option(
        None, optional(read_number), "scale of dot products; none: head_dim^-0.5"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores == "cosine" and self.qk_scale is not None:
            raise SpecError(f"{self}: qk_scale is for scores=dot; cosine learns its own")


@dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(ScoresConfig):
    """Configuration that all mixers of attention inside groups of tokens share."""

    position: str = position_option("none")
    pretrained_window: tuple[int, int] | None = option(
        None, optional(read_size), "window whose coordinates log_cpb was trained in"
    )

    @property
    def mask_value(self) -> float | None:
        """The value added to pairs separated by the shift; None, the default, is -inf."""
        return None

    @property
    def mask_padding(self) -> bool:
        """True if pads are masked as keys of real tokens; an option of some mixers."""
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position != "log_cpb" and self.pretrained_window is not None:
            raise SpecError(f"{self}: pretrained_window is for position=log_cpb")


@dataclass(frozen=True, kw_only=True)
class FullLength(SoftmaxConfig):
    """Configuration of mixers with groups along a full axis, which allow no relative table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position == "bias":
            raise SpecError(
                f"{self}: position=bias needs groups of a stated extent (window, cosine, "
                "shuffle), because its table would grow with the image; use position=log_cpb"
            )


@dataclass(frozen=True, kw_only=True)
class TwoBranches(FullLength):
    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if heads % 2:
            raise SpecError(f"{self}: two branches share the heads, so {heads} must be even")
