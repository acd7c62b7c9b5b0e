"""The config of the mixer whose windows have tokens beside the map."""

from __future__ import annotations

from dataclasses import dataclass

from attention.configs.softmax import SIZE, SoftmaxConfig, position_option
from transom.errors import SpecError
from transom.fields import option, read_count, read_size


@dataclass(frozen=True, kw_only=True)
class MessengerConfig(SoftmaxConfig):
    """Options of windows with a messenger token each.

    Source: MSG-Transformer (Fang et al. 2022, arXiv 2105.15168), section 3.
    """

    size: tuple[int, int] = option((7, 7), read_size, SIZE)
    region: int = option(
        4, read_count, "windows a side whose messengers exchange channels after every block"
    )
    position: str = position_option("bias")

    @property
    def takes_tokens(self) -> bool:
        return True

    def windows(self, h: int, w: int) -> tuple[int, int]:
        """(rows, columns) of the windows of an (h, w) map, and of their messengers."""
        gh, gw = self.size
        return (h + gh - 1) // gh, (w + gw - 1) // gw

    def check(self, dim: int, heads: int) -> None:
        super().check(dim, heads)
        if dim % self.region**2:
            raise SpecError(
                f"{self}: the messengers of {self.region}x{self.region} windows exchange equal "
                f"parts of their channels, and {dim} does not divide into {self.region**2}"
            )
