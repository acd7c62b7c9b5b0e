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


def w_msa_with_messengers(h: int, w: int, c: int, window: tuple[int, int]) -> int:
    """MSG-Transformer, section 3: MSA in each of the windows, of its tokens and its messenger.

    With n windows and t = n (M^2 + 1) tokens: 4tc^2 + 2n (M^2 + 1)^2 c.
    """
    n, length = h * w // (window[0] * window[1]), window[0] * window[1] + 1
    return 4 * n * length * c**2 + 2 * n * length**2 * c


def twice_side(c: int, window: tuple[int, int]) -> float:
    """The side of the square grid on which MSA costs twice W-MSA.

    4nc^2 + 2n^2 c = 2 (4nc^2 + 2 M^2 n c) has the root n = 2c + 2 M^2 tokens.
    """
    return (2 * c + 2 * window[0] * window[1]) ** 0.5


def _window(config, h: int, w: int, c: int, index: int) -> Formula:
    divides = h % config.size[0] == 0 and w % config.size[1] == 0
    return Formula(w_msa(h, w, c, config.size), "paper", divides)


def _messenger(config, h: int, w: int, c: int, index: int) -> Formula:
    """A mixer alone has no messengers; with them: `w_msa_with_messengers`."""
    return _window(config, h, w, c, index)._replace(source="derived")


def _shuffle(config, h: int, w: int, c: int, index: int) -> Formula:
    run = config.interval if config.interval and index % 2 else 1  # windows that a group spans
    divides = h % (run * config.size[0]) == 0 and w % (run * config.size[1]) == 0
    return Formula(w_msa(h, w, c, config.size), "derived", divides)


def _full(config, h: int, w: int, c: int, index: int) -> Formula:
    return Formula(msa(h, w, c), "paper", True)


def _axial(config, h: int, w: int, c: int, index: int) -> Formula:
    layers = 1 if config.order == "parallel" else 2
    return Formula(layers * (4 * h * w * c**2 + h * w * c * (h + w)), "derived", True)


def _axial_deeplab(config, h: int, w: int, c: int, index: int) -> Formula:
    """A layer along an axis of n tokens: 2 hw C^2 + 3.5 hw n C, without its position terms 2.5."""
    lengths = {"both": (h, w), "height": (h,), "width": (w,)}[config.along]
    macs = sum(2 * h * w * c * c + 5 * h * w * n * c // 2 for n in lengths)
    return Formula(macs, "derived", True)


def _deformable(config, h: int, w: int, c: int, index: int) -> Formula:
    """2 hw C^2 + 2 n C^2 + n C (k^2 + 2) + 2 hw n C for n sampled points."""
    pad = config.kernel // 2 if config.kernel != config.stride else 0
    n = 1
    for side in (h, w):
        n *= max(side + 2 * pad - config.kernel, 0) // config.stride + 1
    macs = 2 * (h * w + n) * c * c + n * c * (config.kernel**2 + 2) + 2 * h * w * n * c
    return Formula(macs, "derived", True)


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
    """M^2 h w C; an odd block has one window more along each axis that one does not cover.

    Two layers with n values between them: 2 n h w C (MLP-Mixer, section 2).
    """
    divides = h % config.size[0] == 0 and w % config.size[1] == 0
    if config.shift and index % 2:
        h, w = (n + m if n > m else n for n, m in zip((h, w), config.size, strict=True))
    if config.hidden:
        return Formula(2 * config.hidden * h * w * c, "derived", divides)
    return Formula(config.size[0] * config.size[1] * h * w * c, "ours", divides)


def _sra(config, h: int, w: int, c: int, index: int) -> Formula:
    """Queries and output on all tokens, keys and values on n cells, and the layer that makes them.

    n = hw / R^2 cells, whose layer costs as one of all tokens; none for R = 1.  With a pool of n
    cells that layer is 1x1.
    """
    (rh, rw), pool = config.ratio, config.pool
    n = pool[0] * pool[1] if pool else (h // rh) * (w // rw)
    layer = n if pool else n * rh * rw if rh * rw > 1 else 0
    macs = (2 * h * w + 2 * n + layer) * c**2 + 2 * h * w * n * c
    return Formula(macs, "derived", pool is not None or h % rh == w % rw == 0)


def _neighbourhood(config, h: int, w: int, c: int, index: int) -> Formula:
    """NAT, section 3: k^2 keys of every query, whatever the dilation; smaller maps are padded."""
    k, least = config.kernel, config.kernel * config.dilation
    return Formula(4 * h * w * c**2 + 2 * k**2 * h * w * c, "paper", min(h, w) >= least)


def _halo(config, h: int, w: int, c: int, index: int) -> Formula:
    """HaloNet, section 2.2: the window's keys of every query, without relative positions."""
    layers, divides = 4 if config.proj else 3, h % config.block == w % config.block == 0
    return Formula(h * w * c * (layers * c + 2 * config.window**2), "derived", divides)


FORMULAS: dict[str, Callable[..., Formula]] = {
    "window": _window, "cosine": _window, "shuffle": _shuffle, "full": _full, "axial": _axial,
    "axial_deeplab": _axial_deeplab, "deformable": _deformable,
    "cross": _cross, "pale": _pale, "token_mlp": _token_mlp, "sra": _sra,
    "neighbourhood": _neighbourhood, "halo": _halo, "messenger": _messenger,
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
