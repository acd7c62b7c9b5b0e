"""The multiply-adds that a part of a backbone states."""

from __future__ import annotations

from typing import NamedTuple


class Macs(NamedTuple):
    """Multiply-adds of one part, for one image.

    module: name of the module in the backbone.  column: projection, mixing, position, mlp,
    resample (stem or downsampling) or head.  macs: multiply-adds.  padding: those of the module
    whose token, query or key is a pad; the mixing row has them for the entire mixer.
    """

    module: str
    column: str
    macs: int
    padding: int = 0
