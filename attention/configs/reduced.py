"""The config of the mixer whose keys stand on a smaller map than its queries."""

from __future__ import annotations

from dataclasses import dataclass

from attention.configs.softmax import ScoresConfig
from transom.errors import SpecError
from transom.fields import choice, option, optional, read_size

RATIO = (2, 2)


@dataclass(frozen=True, kw_only=True)
class SRAConfig(ScoresConfig):
    """Options of spatial-reduction attention.

    Source: Pyramid Vision Transformer (Wang et al. 2021, arXiv 2102.12122), section 3.3; pool
    from PVT v2 (Wang et al. 2022, arXiv 2106.13797), section 3.1.
    """

    ratio: tuple[int, int] = option(RATIO, read_size, "tokens a side that one key stands for")
    pool: tuple[int, int] | None = option(
        None, optional(read_size), "keys a side, whatever the map: 7; none: ratio decides"
    )
    remainder: str = option(
        "drop", choice("drop", "pad"),
        "rows and columns that ratio leaves over: no key sees them, or zeros complete their "
        "cells; an axis shorter than ratio is always padded to one key",
    )  # fmt: skip

    @property
    def takes_tokens(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is not None and (self.ratio != RATIO or self.remainder != "drop"):
            raise SpecError(
                f"{self}: pool states the number of keys, ratio and remainder their cells; "
                "give one of them"
            )
