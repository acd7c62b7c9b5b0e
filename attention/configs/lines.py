"""The configs of mixers whose groups reach along a whole axis, or over the whole map."""

from __future__ import annotations

from dataclasses import dataclass

from attention.configs.config import MixerConfig
from attention.configs.softmax import (
    SIZE,
    FullLength,
    TwoBranches,
    mask_padding_option,
    position_option,
)
from transom.errors import SpecError
from transom.fields import choice, option, read_count, read_size


@dataclass(frozen=True, kw_only=True)
class AxialConfig(FullLength):
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
class AxialDeepLabConfig(MixerConfig):
    """Options of position-sensitive attention along columns, then rows.

    Source: Axial-DeepLab (Wang et al. 2020, arXiv 2003.07853), section 3.2.
    """

    span: int = option(
        56, read_count, "keys are at most span - 1 tokens away; the length of the axis in the paper"
    )
    along: str = option(
        "both", choice("both", "height", "width"), "both: a layer along columns, then along rows"
    )

    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if dim // heads % 2:
            raise SpecError(
                f"{self}: queries and keys are half as wide as values, so dim {dim} over {heads} "
                "heads must be even"
            )


@dataclass(frozen=True, kw_only=True)
class CrossConfig(TwoBranches):
    """Options of cross-shaped windows.

    Source: CSWin Transformer (Dong et al. 2022, arXiv 2107.00652), section 3.2.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    position: str = position_option("lepe")
    mask_padding: bool = mask_padding_option()

    def shrink(self, h: int, w: int, rule: str) -> MixerConfig:
        """The config for an (h, w) map; where one stripe covers it, the authors' code has one
        branch with global attention."""
        if rule == "pad" or h > self.size[0] or w > self.size[1]:
            return self
        shared = {name: getattr(self, name) for name in FullConfig.__dataclass_fields__}
        return FullConfig(**shared)


@dataclass(frozen=True, kw_only=True)
class PaleConfig(TwoBranches):
    """Options of pale-shaped attention.

    Source: Pale Transformer (Wu et al. 2022, arXiv 2112.14000), a reconstruction: no code is
    published.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    mask_padding: bool = mask_padding_option()


@dataclass(frozen=True, kw_only=True)
class FullConfig(FullLength):
    """Options of global self-attention.

    Source: Vaswani et al. 2017 (arXiv 1706.03762); with class tokens ViT (Dosovitskiy et al. 2021,
    arXiv 2010.11929).
    """

    @property
    def takes_tokens(self) -> bool:
        return True
