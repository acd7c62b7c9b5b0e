"""Drawings of analysis.regions that show values: gradients, attention, biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from analysis.pictures.draw_maps import Panel, grid_of, legend, mark, rows_and_columns, title
from analysis.pictures.figure_style import COLORS, FAINT, HEAT, INK, SIGNED, figure, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DECADES = 6  # of a gradient that have distinct colours


def draw_erf(panels: Sequence[Panel], heading: str) -> Figure:
    """Draws (H, W) mean gradients; pixels that are exactly 0 stay white."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    picture, all_axes = grid_of(len(panels), 4, 2.2, 0.7)
    shades = colormaps[HEAT]  # masked values stay white
    normalised = [(p.values / p.values.max().clamp(min=1e-300)).numpy() for p in panels]
    least = min(float(m[m > 0].min(initial=0.1)) for m in normalised)
    norm = LogNorm(max(least, 10.0**-DECADES), 1)
    for ax, panel, values in zip(all_axes, panels, normalised, strict=True):
        shown = ax.imshow(np.ma.masked_equal(values, 0), cmap=shades, norm=norm)
        ax.set_title(words(panel.title))
        ax.set_xlabel(words(panel.text), fontsize=8)
    bar = picture.colorbar(shown, ax=all_axes, shrink=0.7, extend="min")
    bar.set_label("gradient, 1 = strongest pixel")
    if any((m == 0).any() for m in normalised):
        legend(picture, ["white"], ["no gradient at all: these pixels cannot be seen"])
    title(picture, heading)
    return picture


def draw_attention(photo: np.ndarray, panels: Sequence[Panel], heading: str) -> Figure:
    """Draws (h, w) attention shares over a photo (H, W, 3) with values from 0 to 1."""
    from matplotlib import colormaps

    picture, all_axes = grid_of(len(panels) + 1, 4, 2.3, 0.5)
    h, w = panels[0].values.shape
    height, width = photo.shape[:2]
    tall, wide = h * -(-height // h), w * -(-width // w)
    stride, grey = tall / h, np.repeat(photo.mean(2, keepdims=True), 3, axis=2)
    for ax, panel in zip(all_axes, [None, *panels], strict=True):
        if panel is None:
            ax.imshow(photo)
            ax.set_title("the photo and the query")
        else:
            strong = (panel.values / panel.values.max().clamp(min=1e-30)).double().numpy()
            large = np.kron(strong, np.ones((tall // h, wide // w)))[:height, :width, None]
            colors = colormaps["inferno"](large[..., 0])[..., :3]
            ax.imshow(np.where(large > 0, 0.25 * grey + 0.75 * colors, 0.5 + 0.5 * grey))
            ax.set_title(words(panel.title))
            ax.set_xlabel(words(panel.text), fontsize=8)
        mark(ax, panels[0].query or (0, 0), stride)
    from matplotlib.cm import ScalarMappable

    bar = picture.colorbar(ScalarMappable(cmap="inferno"), ax=all_axes, shrink=0.7)
    bar.set_label("attention, 1 = the head's strongest token")
    legend(picture, ["#dddddd"], ["gets no attention: outside the group"], "the query")
    title(picture, heading)
    return picture


def draw_bias(table: Tensor, heading: str) -> Figure:
    """Draws a table (heads, 2 gh - 1, 2 gw - 1) as images and as curves through their centres."""
    heads, h, w = table.shape
    values = table.numpy()
    rows, cols = rows_and_columns(heads, 4)
    picture = figure(1.5 * cols + 4.6, max(1.6 * rows + 0.7, 3))
    parts: Any = picture.subfigures(1, 2, width_ratios=(1.5 * cols + 0.7, 3.9))
    images, curves = parts
    image_axes = images.subplots(rows, cols, squeeze=False).flatten().tolist()
    low, high = float(table.min()), float(table.max())
    signed = low < 0 < high
    bound = max(abs(low), abs(high))
    limits = {"vmin": -bound, "vmax": bound} if signed else {"vmin": low, "vmax": high}
    shades = SIGNED if signed else HEAT
    extent = (-w / 2, w / 2, h / 2, -h / 2)
    for n, ax in enumerate(image_axes):
        ax.set_visible(n < heads)
        if n < heads:
            shown = ax.imshow(values[n], cmap=shades, extent=extent, **limits)
            ax.set_title(f"head {n + 1}", fontsize=8)
            ax.set_xticks([-(w // 2), 0, w // 2])
            ax.set_yticks([-(h // 2), 0, h // 2])
            ax.tick_params(labelsize=6)
    bar = images.colorbar(shown, ax=image_axes, shrink=0.8)
    bar.set_label("added to the score")
    images.supxlabel("columns from key to query", fontsize=8)
    images.supylabel("rows from key to query", fontsize=8)
    axes = curves.subplots()
    steps = np.arange(w) - w // 2
    few = heads <= len(COLORS)
    for n in range(heads):
        color, line = (COLORS[n], ("-", "--", ":", "-.")[n % 4]) if few else (FAINT, "-")
        label = f"head {n + 1}" if few else None
        axes.plot(steps, values[n, h // 2], color=color, lw=1.4, ls=line, label=label)
    if not few:
        mean = values[:, h // 2].mean(0)
        axes.plot(steps, mean, color=INK, lw=2, label=f"mean of {heads} heads (grey: each)")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_xlabel("columns from key to query, in the same row")
    axes.set_ylabel("added to the score")
    axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    title(picture, heading)
    return picture
