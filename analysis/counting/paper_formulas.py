"""The complexity formulas of the papers, in plain integers.

They are independent of the code that they validate.  h, w: tokens; c: channels; results in MACs.
They hold where the sizes divide; elsewhere the difference is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from attention.configs.config import MixerConfig
from attention.configs.registry import name_of


class Formula(NamedTuple):
    """macs: projection and mixing of one image.  source: paper, derived (counted from a paper's
    definition) or ours (there is no paper).  divides: whether the formula is exact here."""

    macs: int
    source: str
    divides: bool


def msa(h: int, w: int, c: int) -> int:
    """Omega(MSA), eq. 1 of Swin Transformer."""
    return 4 * h * w * c**2 + 2 * (h * w) ** 2 * c


def w_msa(h: int, w: int, c: int, window: tuple[int, int]) -> int:
    """Omega(W-MSA), eq. 2 of Swin Transformer, for windows of any two sides."""
    return 4 * h * w * c**2 + 2 * window[0] * window[1] * h * w * c


def twice_side(c: int, window: tuple[int, int]) -> float:
    """The side of the square grid on which MSA costs twice W-MSA.

    4nc^2 + 2n^2 c = 2 (4nc^2 + 2 M^2 n c) has the root n = 2c + 2 M^2 tokens.
    """
    return (2 * c + 2 * window[0] * window[1]) ** 0.5


def _window(config, h: int, w: int, c: int, index: int) -> Formula:
    divides = h % config.size[0] == 0 and w % config.size[1] == 0
    return Formula(w_msa(h, w, c, config.size), "paper", divides)


def _shuffle(config, h: int, w: int, c: int, index: int) -> Formula:
    return _window(config, h, w, c, index)._replace(source="derived")


def _full(config, h: int, w: int, c: int, index: int) -> Formula:
    return Formula(msa(h, w, c), "paper", True)


def _axial(config, h: int, w: int, c: int, index: int) -> Formula:
    layers = 1 if config.order == "parallel" else 2
    return Formula(layers * (4 * h * w * c**2 + h * w * c * (h + w)), "derived", True)


def _cross(config, h: int, w: int, c: int, index: int) -> Formula:
    """CSWin Transformer, section 3.2: HWC (4C + sw H + sw W)."""
    sh, sw = config.size
    divides = h % sh == 0 and w % sw == 0
    return Formula(h * w * c * (4 * c + sw * h + sh * w), "paper", divides)


def _pale(config, h: int, w: int, c: int, index: int) -> Formula:
    """With the three depthwise 3x3 maps of the separable query, key and value."""
    rows, cols = config.size
    divides = h % rows == 0 and w % cols == 0
    return Formula(h * w * c * (4 * c + cols * h + rows * w + 27), "derived", divides)


def _token_mlp(config, h: int, w: int, c: int, index: int) -> Formula:
    """M^2 h w C; an odd block has one window more along each axis that one does not cover."""
    divides = h % config.size[0] == 0 and w % config.size[1] == 0
    if config.shift and index % 2:
        h, w = (n + m if n > m else n for n, m in zip((h, w), config.size, strict=True))
    return Formula(config.size[0] * config.size[1] * h * w * c, "ours", divides)


FORMULAS: dict[str, Callable[..., Formula]] = {
    "window": _window, "cosine": _window, "shuffle": _shuffle, "full": _full, "axial": _axial,
    "cross": _cross, "pale": _pale, "token_mlp": _token_mlp,
}  # fmt: skip


def formula(config: MixerConfig, h: int, w: int, c: int, index: int = 0) -> Formula | None:
    """MACs of a mixer by its paper's formula; None for a plug-in.

    Args:
        config: of the mixer.
        h: rows of the map, in tokens.
        w: columns of the map, in tokens.
        c: channels.
        index: of the block; only `token_mlp` depends on its parity.
    """
    rule = FORMULAS.get(name_of(type(config)))
    return None if rule is None else rule(config, h, w, c, index)
