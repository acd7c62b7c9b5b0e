"""The config of the mixer whose keys are sampled at points that its queries choose."""

from __future__ import annotations

from dataclasses import dataclass

from attention.configs.softmax import ScoresConfig
from transom.errors import SpecError
from transom.fields import choice, option, optional, read_count, read_number, read_size


@dataclass(frozen=True, kw_only=True)
class DeformableConfig(ScoresConfig):
    """Options of deformable attention.

    Source: DAT (Xia et al. 2022, arXiv 2201.00520), section 3.2; reach=none is DAT++ (arXiv
    2309.01430).
    """

    stride: int = option(2, read_count, "tokens a side that one sampled point stands for")
    kernel: int = option(5, read_count, "side of the convolution that computes the offsets")
    groups: int = option(1, read_count, "parts of the channels with points of their own")
    reach: float | None = option(
        2.0, optional(read_number),
        "largest offset, in steps between points; none: unbounded, points stay on the map",
    )  # fmt: skip
    position: str = option(
        "none", choice("none", "bias", "conv"),
        "bias: relative table, sampled; conv: depthwise 3x3 of the queries, added to the output",
    )  # fmt: skip
    table: tuple[int, int] = option(
        (14, 14), read_size, "map whose relative positions the table of position=bias holds"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < self.stride:
            raise SpecError(f"{self}: kernel {self.kernel} is smaller than stride {self.stride}")
        if self.reach is not None and self.reach < 0:
            raise SpecError(f"{self}: reach must be 0 or more, or none")

    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if heads % self.groups:
            raise SpecError(f"{self}: {heads} heads do not divide into {self.groups} groups")
