"""The configs of mixers whose queries attend to the tokens around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attention.configs.softmax import SoftmaxConfig, mask_padding_option
from transom.fields import choice, option, read_count, read_count_or_zero, read_flag


def _read_odd(value: Any) -> int:
    try:
        number = read_count(value)
    except ValueError:
        number = 0
    if number % 2 == 0:
        raise ValueError("an odd number, so that a query is the middle of its window")
    return number


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodConfig(SoftmaxConfig):
    """Options of a window around every query, which borders move inward.

    Source: Neighborhood Attention Transformer (Hassani et al. 2023, arXiv 2204.07143), section 3;
    dilation from Dilated Neighborhood Attention (Hassani and Shi 2022, arXiv 2209.15001).
    """

    kernel: int = option(7, _read_odd, "keys of a query along each axis, an odd number")
    dilation: int = option(1, read_count, "distance between two keys of a query, in tokens")
    position: str = option(
        "bias", choice("none", "bias", "log_cpb"), "bias: relative table; log_cpb: Swin V2"
    )


@dataclass(frozen=True, kw_only=True)
class HaloConfig(SoftmaxConfig):
    """Options of blocks of queries, each of which attends to its block and the tokens around it.

    Source: HaloNet (Vaswani et al. 2021, arXiv 2103.12731), section 2.2; with block=1, stand-alone
    self-attention (Ramachandran et al. 2019, arXiv 1906.05909), section 3.
    """

    block: int = option(7, read_count, "side of a block of queries, in tokens")
    radius: int = option(3, read_count_or_zero, "tokens around a block that its queries see, too")
    position: str = option(
        "relative", choice("none", "bias", "log_cpb", "relative"),
        "relative: learned rows and columns times the query; bias: relative table",
    )  # fmt: skip
    mask_padding: bool = mask_padding_option()
    proj: bool = option(True, read_flag, "a linear layer of the output")

    @property
    def window(self) -> int:
        """Keys of a block along each axis."""
        return self.block + 2 * self.radius
