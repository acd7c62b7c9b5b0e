"""Drawings of analysis.regions from arrays: footprints and masks, with legends in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis.pictures.figure_style import COLORS, INK, NOTHING, figure
from analysis.pictures.figure_style import words as plain_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.models.maps import Masks

MARK = "#D55E00"  # the query
HATCH = "////"
MOST_WINDOWS = 9


class Panel(NamedTuple):
    """A map to draw.  values: (h, w).  title: above it; text: below it.  query: (row, column)."""

    title: str
    values: Tensor
    text: str = ""
    query: tuple[int, int] | None = None


def bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def rows_and_columns(n: int, most: int = 4) -> tuple[int, int]:
    """(rows, columns) of n panels, at most `most` side by side, with rows of similar length."""
    rows = -(-n // most)
    return rows, -(-n // rows)


def grid_of(n: int, most: int, side: float, extra: float = 0.6) -> tuple[Figure, list[Any]]:
    """A figure with n square axes, the unused ones of the last row hidden."""
    rows, cols = rows_and_columns(n, most)
    picture = figure(max(side * cols, 4.5), (side + 0.45) * rows + extra)
    picture.set_layout_engine("compressed")  # square panels leave no gaps
    axes = picture.subplots(rows, cols, squeeze=False).flatten().tolist()
    for unused in axes[n:]:
        unused.set_visible(False)
    for used in axes[:n]:
        bare(used)
    return picture, axes[:n]


def mark(axes: Any, query: tuple[int, int], scale: float = 1) -> None:
    """A ring with a dot around one cell; visible on any colour and in grey."""
    x, y = ((query[1] + 0.5) * scale - 0.5, (query[0] + 0.5) * scale - 0.5)
    axes.plot(x, y, "o", ms=8, mfc="white", mec="black", mew=0.8)
    axes.plot(x, y, "o", ms=4, color=MARK)


def title(picture: Figure, text: str) -> None:
    """A heading that stays inside the figure; its label is the text in one piece."""
    import textwrap

    width = int(11 * picture.get_figwidth())
    lines = [textwrap.fill(line, width) for line in text.splitlines()]
    picture.suptitle(plain_words("\n".join(lines)), fontsize=11).set_label(text)


def legend(picture: Figure, colors: Sequence[Any], words: Sequence[str], query: str = "") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if query:
        keys.append(Line2D([], [], ls="", marker="o", ms=7, mfc=MARK, mec="black", label=query))
    keys += [
        Patch(fc=color, ec=INK, lw=0.5, hatch=HATCH if "pad" in word else None, label=word)
        for color, word in zip(colors, words, strict=True)
    ]
    widths = [0.6 + 0.07 * len(word) for word in ([query] if query else []) + list(words)]
    fits = max(int(picture.get_figwidth() / max(widths)), 1)
    cols = len(keys) if sum(widths) < picture.get_figwidth() else min(len(keys), fits)
    picture.legend(handles=keys, loc="outside lower center", ncols=cols)


def _ordered(n: int) -> list[Any]:
    """n colours from dark, for few blocks, to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.08 + 0.87 * i / max(n - 1, 1)) for i in range(n)]


# -- footprints ------------------------------------------------------------------------------


def draw_footprint(
    panels: Sequence[Panel], after: Sequence[int], heading: str, words: Sequence[str] = ()
) -> Figure:
    """Draws maps of `footprint.first_seen`.

    panels: their values are numbers of blocks, 0 for none.  after: all these numbers, ascending.
    words: their names in the legend.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap

    lines = max(panel.title.count("\n") for panel in panels)
    picture, all_axes = grid_of(len(panels), 4, 2.3, 0.8 + 0.5 * lines)
    colors = [NOTHING, *_ordered(len(after))]
    levels = np.searchsorted([0, *after], np.arange(max(after) + 1))
    for ax, panel in zip(all_axes, panels, strict=True):
        rank = levels[panel.values.numpy()]
        norm = BoundaryNorm(np.arange(len(colors) + 1) - 0.5, len(colors))
        ax.imshow(rank, cmap=ListedColormap(colors), norm=norm, interpolation="nearest")
        _cells(ax, *rank.shape)
        ax.set_title(plain_words(panel.title), family="monospace")
        ax.set_xlabel(plain_words(panel.text))
        if panel.query is not None:
            mark(ax, panel.query)
    words = list(words) or [f"seen after {n} block{'s' * (n > 1)}" for n in after]
    legend(picture, [*colors[1:], NOTHING], [*words, "not seen"], "the query")
    title(picture, heading)
    return picture


def _cells(axes: Any, h: int, w: int, color: str = "white") -> None:
    if max(h, w) <= 40:
        axes.set_xticks(np.arange(-0.5, w), minor=True)
        axes.set_yticks(np.arange(-0.5, h), minor=True)
        axes.grid(which="minor", color=color, lw=0.3)
        axes.tick_params(which="both", length=0)


# -- masks -----------------------------------------------------------------------------------

WRAPPED_FROM = (
    "stays where it is", "came round from the top", "came round from the left", "from both",
)  # fmt: skip
ORIGIN_COLORS = ("#dce6ee", COLORS[4], COLORS[1], COLORS[2])


def draw_masks(found: Masks, heading: str) -> Figure:
    """Draws the map, the shifted map with its windows, and each distinct mask."""
    distinct: dict[bytes, list[int]] = {}
    for n, masked in enumerate(found.masked):
        distinct.setdefault(masked.numpy().tobytes(), []).append(n)
    shown = list(distinct.values())[:MOST_WINDOWS]
    picture = figure(11, 4.3)
    parts: Any = picture.subfigures(1, 3, width_ratios=(1, 1, 1.1))
    left, middle, right = parts
    groups, h, w = found.groups, *found.ids.shape
    titles = (
        "1. The map.  Tokens with one number\nattend to each other",
        "2. After the cyclic shift.  Thick lines:\nthe windows that are computed",
    )
    for part, back, words in zip((left, middle), (True, False), titles, strict=True):
        ids, wrapped_from, pad = (
            (groups.unroll(t[None, :, :, None])[0, :, :, 0] if back else t).numpy()
            for t in (found.ids, found.wrapped_from, found.pad)
        )
        axes = part.subplots()
        bare(axes)
        axes.set_title(words)
        _regions(axes, ids, wrapped_from, pad)
        if not back and groups.rows.interval == groups.cols.interval == 1:
            for lines, size, step in ((axes.axhline, h, groups.extent[0]),
                                      (axes.axvline, w, groups.extent[1])):  # fmt: skip
                for at in range(0, size + 1, step):
                    lines(at - 0.5, color="black", lw=2.5, clip_on=False)
    rows, cols = rows_and_columns(len(shown), 2 if len(shown) <= 4 else 3)
    mask_axes = right.subplots(rows, cols, squeeze=False).flatten()
    for ax in mask_axes:
        bare(ax)
        ax.set_visible(False)
    isolated = torch.from_numpy(isolated_pads(found.ids.numpy(), found.pad.numpy()))
    ids_by_window = groups.split(found.ids.masked_fill(isolated, -1)[None, :, :, None])
    for ax, windows in zip(mask_axes, shown, strict=False):
        ax.set_visible(True)
        mask = found.masked[windows[0]].numpy()
        ax.imshow(mask, cmap=_two(COLORS[0], "white"), vmin=0, vmax=1, interpolation="nearest")
        numbers_in = sorted({int(i) + 1 for i in ids_by_window[0, windows[0], :, 0] if i >= 0})
        more = f"\nand {len(windows) - 1} more alike" if len(windows) > 1 else ""
        numbers = ", ".join(map(str, numbers_in)) or "pads"
        ax.set_title(f"window with {numbers}{more}", fontsize=8)
    masked = f"; {len(distinct) - len(shown)} more not shown" if len(distinct) > len(shown) else ""
    right.suptitle(
        f"3. Each window's mask: row = query, column = key,\n"
        f"the {found.masked.shape[1]} tokens of a window row by row{masked}",
        fontsize=9,
    )
    origins = [i for i in range(4) if (found.wrapped_from == i).any()]
    colors, names = [ORIGIN_COLORS[i] for i in origins], [WRAPPED_FROM[i] for i in origins]
    if found.pad.any():
        colors, names = [*colors, "white"], [*names, "pad"]
    legend(picture, [*colors, COLORS[0], "white"], [*names, "may attend", "masked"])
    title(picture, heading)
    return picture


def _two(first: str, second: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([first, second])


def isolated_pads(ids: np.ndarray, pad: np.ndarray) -> np.ndarray:
    """(H, W) bool: pads whose id no token has."""
    return pad & ~np.isin(ids, ids[~pad])


def _regions(axes: Any, ids: np.ndarray, wrapped_from: np.ndarray, pad: np.ndarray) -> None:
    """Draws the origin of tokens as colours, and sets that attend as lines and numbers."""
    from matplotlib.colors import ListedColormap

    axes.imshow(wrapped_from, cmap=ListedColormap(list(ORIGIN_COLORS)), vmin=0, vmax=3,
                interpolation="nearest")  # fmt: skip
    h, w = ids.shape
    _cells(axes, h, w)
    if pad.any():
        fine = np.kron(pad, np.ones((8, 8)))  # contours pass through centres: make cells small
        across, down = ((np.arange(8 * n) + 0.5) / 8 - 0.5 for n in (w, h))
        axes.contourf(across, down, fine, levels=[0.5, 1.5], colors="none", hatches=[HATCH])
    ids = np.where(isolated_pads(ids, pad), -1, ids)
    i, j = np.nonzero(ids[1:] != ids[:-1])
    axes.hlines(i + 0.5, j - 0.5, j + 0.5, color=INK, lw=1)
    i, j = np.nonzero(ids[:, 1:] != ids[:, :-1])
    axes.vlines(j + 0.5, i - 0.5, i + 0.5, color=INK, lw=1)
    size = 8 if ids.max() < 40 else 6
    for number in np.unique(ids[ids >= 0]):
        i, j = np.nonzero(ids == number)
        block = len(i) == (np.ptp(i) + 1) * (np.ptp(j) + 1)
        if block:
            box = {"fc": "white", "ec": "none", "pad": 1} if pad[i, j].any() else None
            axes.text(j.mean(), i.mean(), number + 1, ha="center", va="center", fontsize=size,
                      bbox=box)  # fmt: skip
        elif max(h, w) <= 28:
            for y, x in zip(i, j, strict=True):
                axes.text(x, y, number + 1, ha="center", va="center", fontsize=5)
