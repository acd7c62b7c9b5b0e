"""Bars with whiskers, in panels that share one legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.pictures import figure_style


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar: its series, which has a colour, its name beside the axis, and its interval."""

    series: str
    name: str
    value: float
    low: float
    high: float

    @property
    def label(self) -> str:
        return f"{self.series}  {self.name}".strip()


def draw(panels: Mapping[str, Sequence[Bar]], xlabel: str) -> Any:
    """Draws a panel per title, below one another, with one legend.

    Args:
        panels: bars by the title of their panel; one panel with the title "" has none.
        xlabel: what a bar's length is, with its unit.

    Returns:
        The figure.
    """
    series = list(dict.fromkeys(bar.series for bars in panels.values() for bar in bars))
    one = len(panels) <= 1 and "" in panels
    counts = [max(1, len(bars)) for bars in panels.values()] or [1]
    height = sum(0.6 + 0.28 * count for count in counts) + (0.2 if one else 0.5)
    picture = figure_style.figure(7.5, height)
    grid = picture.subplots(len(counts), squeeze=False, height_ratios=counts)
    for axes, (title, bars) in zip(grid[:, 0], panels.items(), strict=False):
        for y, bar in enumerate(bars):
            color = figure_style.COLORS[series.index(bar.series) % len(figure_style.COLORS)]
            axes.barh(
                y, bar.value, color=color, label=figure_style.words(bar.series),
                xerr=[[bar.value - bar.low], [bar.high - bar.value]],
                error_kw={"ecolor": figure_style.INK, "capsize": 2, "elinewidth": 0.8},
            )  # fmt: skip
        # a legend names the series; without one the names do
        names = [bar.label if one else bar.name or bar.series for bar in bars]
        axes.set_yticks(range(len(bars)), map(figure_style.words, names), fontsize=7)
        axes.invert_yaxis()
        axes.set_title(figure_style.words(title), loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel(xlabel)
    if not one:
        keys = {
            label: key for axes in grid[:, 0]
            for key, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }  # fmt: skip
        picture.legend(
            keys.values(), keys, loc="outside lower center", ncols=max(1, min(4, len(keys))),
            fontsize=8,
        )  # fmt: skip
    return picture


def described(panels: Mapping[str, Sequence[Bar]], what: str, xlabel: str) -> str:
    """The alt text of `draw`: a sentence on the figure, and the longest and shortest of a panel."""
    texts = []
    for title, bars in panels.items():
        points = [figure_style.Point(bar.label, float(i), bar.value) for i, bar in enumerate(bars)]
        drawn = what if not title else f"{what} Panel: {title}."
        texts.append(figure_style.described(drawn, "one bar each", xlabel, points, extremes="y"))
    return "\n\n".join(texts)
