"""The configs of the eight built-in mixers, and the combinations of options they refuse.

The groups (size, shift, order), the scores (scores) and the position terms (position) are
orthogonal; the defaults are the choices of each mixer's paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attention.config import MixerConfig
from attention.registry import declare, name_of
from transom.errors import SpecError
from transom.fields import choice, option, optional, read_flag, read_number, read_size

SIZE = "side of a window, stripe or pale: 7, or 7x14 with the height first"


def _scores(default: str) -> str:
    return option(default, choice("dot", "cosine"), "how queries and keys are compared")


def _position(default: str) -> str:
    read = choice("none", "bias", "log_cpb", "lepe")
    return option(default, read, "bias: relative table; log_cpb: Swin V2; lepe: CSWin")


def _mask_padding() -> bool:
    return option(False, read_flag, "hide pad tokens instead of showing them as constant keys")


@dataclass(frozen=True, kw_only=True)
class SoftmaxConfig(MixerConfig):
    """Configuration that all softmax mixers share."""

    scores: str = _scores("dot")
    position: str = _position("none")
    qkv_bias: bool = option(True, read_flag, "bias of the query, key and value projections")
    qk_scale: float | None = option(
        None, optional(read_number), "scale of dot products; none: head_dim^-0.5"
    )
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
        if self.scores == "cosine" and self.qk_scale is not None:
            raise SpecError(f"{self}: qk_scale is for scores=dot; cosine learns its own")
        if self.position != "log_cpb" and self.pretrained_window is not None:
            raise SpecError(f"{self}: pretrained_window is for position=log_cpb")


@dataclass(frozen=True, kw_only=True)
class _FullLength(SoftmaxConfig):
    """Configuration of mixers with groups along a full axis, which allow no relative table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position == "bias":
            raise SpecError(
                f"{self}: position=bias needs groups of a stated extent (window, cosine, "
                "shuffle), because its table would grow with the image; use position=log_cpb"
            )


@dataclass(frozen=True, kw_only=True)
class _TwoBranches(_FullLength):
    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if heads % 2:
            raise SpecError(f"{self}: two branches share the heads, so {heads} must be even")


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
    position: str = _position("bias")
    mask_value: float | None = option(
        None, optional(read_number), "added to pairs that the shift parts; none: -inf, exact"
    )
    mask_padding: bool = _mask_padding()

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

    scores: str = _scores("cosine")
    position: str = _position("log_cpb")


@dataclass(frozen=True, kw_only=True)
class ShuffleConfig(SoftmaxConfig):
    """Options of windows and dilated windows in turn.

    Source: Shuffle Transformer (Huang et al., arXiv 2106.03650), section 3.2.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    position: str = _position("bias")
    mask_padding: bool = _mask_padding()


@dataclass(frozen=True, kw_only=True)
class AxialConfig(_FullLength):
    """Options of attention along whole columns and whole rows.

    Source: after Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853), whose layer has other
    projections, norms and positions.
    """

    order: str = option(
        "parallel", choice("parallel", "sequential"),
        "half the channels along each axis, or two layers: height, then width",
    )  # fmt: skip

    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if self.order == "parallel" and heads % 2:
            raise SpecError(
                f"{self}: two branches share the heads, so {heads} must be even "
                "(or order=sequential)"
            )


@dataclass(frozen=True, kw_only=True)
class CrossConfig(_TwoBranches):
    """Options of cross-shaped windows.

    Source: CSWin Transformer (Dong et al. 2022, arXiv 2107.00652), section 3.2.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    position: str = _position("lepe")
    mask_padding: bool = _mask_padding()

    def shrink(self, h: int, w: int, rule: str) -> MixerConfig:
        """The config for an (h, w) map; where one stripe covers it, the authors' code has one
        branch with global attention."""
        if rule == "pad" or h > self.size[0] or w > self.size[1]:
            return self
        shared = {name: getattr(self, name) for name in FullConfig.__dataclass_fields__}
        return FullConfig(**shared)


@dataclass(frozen=True, kw_only=True)
class PaleConfig(_TwoBranches):
    """Options of pale-shaped attention.

    Source: Pale Transformer (Wu et al. 2022, arXiv 2112.14000), a reconstruction: no code is
    published.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    mask_padding: bool = _mask_padding()


@dataclass(frozen=True, kw_only=True)
class FullConfig(_FullLength):
    """Options of global self-attention.

    Source: Vaswani et al. 2017 (arXiv 1706.03762).
    """


@dataclass(frozen=True, kw_only=True)
class TokenMLPConfig(MixerConfig):
    """Options of a learned matrix over the tokens of a window.

    Source: Swin-MLP, models/swin_mlp.py of microsoft/Swin-Transformer.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    shift: bool = option(True, read_flag, "every second block moves its windows by half")

    shrink = _shrunk_window


def alternates(config: MixerConfig) -> bool | None:
    """True if odd blocks of a stage differ from even ones; None, which is false, if unknown.

    A config states it as `alternates`; without a statement, an option `shift` implies it.
    """
    if config.alternates is not None:
        return config.alternates
    if getattr(config, "shift", name_of(type(config)) == "shuffle"):
        return True
    return False if type(config).__module__ == __name__ else None


BUILT_IN = (  # name, config, source; attention/mixers/NAME.py defines the class
    ("window", WindowConfig, "Swin Transformer (Liu et al. 2021, arXiv 2103.14030)"),
    ("cosine", CosineConfig, "Swin Transformer V2 (Liu et al. 2022, arXiv 2111.09883)"),
    ("axial", AxialConfig, "after Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853)"),
    ("cross", CrossConfig, "CSWin Transformer (Dong et al. 2022, arXiv 2107.00652)"),
    ("pale", PaleConfig, "reconstruction of Pale (Wu et al. 2022, arXiv 2112.14000)"),
    ("shuffle", ShuffleConfig, "after Shuffle Transformer (Huang et al., arXiv 2106.03650)"),
    ("token_mlp", TokenMLPConfig, "Swin-MLP (microsoft/Swin-Transformer, swin_mlp.py)"),
    ("full", FullConfig, "global self-attention (Vaswani et al. 2017, arXiv 1706.03762)"),
)
for _name, _config, _source in BUILT_IN:
    declare(_name, _config, _source, f"attention.mixers.{_name}")
