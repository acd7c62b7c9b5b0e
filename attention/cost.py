"""The multiply-adds that a mixer states."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Multiply-adds (MACs) of one forward of one image through one mixer.

    Source: the two terms of eq. 1 and 2 of Swin Transformer (arXiv 2103.14030), for projections and
    products between tokens; what the other mixers add is counted from their definitions.

    Args:
        projection: MACs of the linear layers and convolutions that make queries, keys, values
            and the output.
        mixing: MACs of the products between tokens.
        position: MACs of position terms (log-CPB, LePE).
        padding: the part of the total, in MACs, whose token, query or key is a pad.

    Example:
        >>> import attention
        >>> cost = attention.create("full", dim=8, heads=2).cost(4, 4)
        >>> cost
        Cost(projection=4096, mixing=4096, position=0, padding=0)
        >>> cost.total
        8192
    """

    projection: int
    mixing: int
    position: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        """MACs in all; `padding` is part of them."""
        return self.projection + self.mixing + self.position
