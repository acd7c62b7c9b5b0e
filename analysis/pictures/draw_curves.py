"""The log-log figure of a sweep, readable in print."""

from __future__ import annotations

import itertools
import math
from typing import Any

from analysis.counting.scaling import Row
from analysis.pictures import figure_style
from transom import table

LABELS = {
    "resolution": "image side (pixels)", "size": "side of windows, stripes, pales (tokens)",
    "width": "width (times the heads, of equal dim)", "depth": "depth (times the blocks)",
}  # fmt: skip
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = "osD^vPX*"
PANELS = {"mixing": "mixing: MACs between tokens", "total": "total: all MACs"}
COLUMNS = ("mixing", "macs_formula")  # of the panels
MOST_NOTES = 10  # crossings that a figure names


def draw(
    rows: list[Row], fits: list[Row], found: list[Row], sentences: list[str], over: str
) -> Any:
    """Draws mixing MACs on the left and all MACs on the right, log-log.

    Hollow points are padded; rings with letters are the crossings of the caption.
    """
    notes = [f"({chr(97 + i)}) {line}" for i, line in enumerate(sentences[:MOST_NOTES])]
    if len(sentences) > MOST_NOTES:
        notes.append(f"and {len(sentences) - MOST_NOTES} pairs more")
    if any(row["padding_%"] for row in rows):
        notes.append("hollow points: the map is padded, because groups do not divide it")
    picture = figure_style.figure(9.2, 4.4 + 0.16 * len(notes))
    panels = picture.subplots(1, 2, sharey=True)
    unit, label = _unit(rows)
    against = _against(over)
    for axes, column, part in zip(panels, COLUMNS, PANELS, strict=True):
        for i, fit in enumerate(fits):
            series_rows = [row for row in rows if row["series"] == fit["series"] and row[column]]
            power = f"   ~ {against}^{fit[part]:.2f}" if fit[part] is not None else ""
            look = {"color": figure_style.COLORS[i % 6], "marker": MARKERS[i % len(MARKERS)]}
            axes.plot(
                [row["value"] for row in series_rows],
                [row[column] / unit for row in series_rows], **look,
                linestyle=LINES[i % len(LINES)], markersize=5,
                gid=table.plain(f"{part}:{fit['series']}"),
                label=figure_style.words(fit["series"] + power),
            )  # fmt: skip
            padded = [row for row in series_rows if row["padding_%"]]
            axes.plot(
                [row["value"] for row in padded], [row[column] / unit for row in padded], **look,
                linestyle="", markersize=5, markerfacecolor="white",
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", title=PANELS[part], xlabel=LABELS[over])
        _ticks(axes, sorted({row["value"] for row in rows}))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.grid(True, which="major", color=figure_style.FAINT, linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        # in the order of the lines at their end, so that colours are not needed
        keys = sorted(
            axes.get_legend_handles_labels()[0], key=lambda k: -([*k.get_ydata()] or [0])[-1]
        )
        axes.legend(handles=keys, handlelength=3.5)
    panels[0].set_ylabel(label)
    for i, cross in enumerate(found[:MOST_NOTES]):
        series_rows = [row for row in rows if row["series"] == cross["more"]]
        if (x := cross["sampled"]) is not None:
            y = _between(series_rows, x) / unit
            name = table.plain(f"crossing:{cross['more']}:{cross['less']}")
            panels[1].plot(
                [x], [y], "o", markersize=12, color=figure_style.INK, markerfacecolor="none",
                gid=name,
            )  # fmt: skip
            above = i % 2 == 0  # neighbours keep their letters apart
            panels[1].annotate(
                f"({chr(97 + i)})", (x, y), (0, 8 if above else -8), textcoords="offset points",
                ha="center", va="bottom" if above else "top",
            )  # fmt: skip
    picture.supxlabel(figure_style.words("\n".join(notes)), x=0.06, ha="left", fontsize=8)
    return picture


def described(rows: list[Row], fits: list[Row], sentences: list[str], over: str) -> str:
    """The alt text of `draw`: a paragraph a panel, with exponents, and every crossing."""
    unit, label = _unit(rows)
    texts = []
    for column, part in zip(COLUMNS, PANELS, strict=True):
        points = [
            figure_style.Point(
                f"{row['series']} at {row['value']:g}", row["value"], row[column] / unit
            )
            for row in rows
            if row[column]
        ]
        what = f"Curves of {len(fits)} series, log-log. Panel: {PANELS[part]}."
        text = figure_style.described(what, LABELS[over], label, points)
        powers = [
            f"{fit['series']} ~ {_against(over)}^{fit[part]:.2f}"
            for fit in fits if fit[part] is not None
        ]  # fmt: skip
        texts.append(text + (f"\nGrowth: {'; '.join(powers)}." if powers else ""))
    if sentences:
        texts.append("\n".join(f"{line}." for line in sentences))
    return "\n\n".join(texts)


def _unit(rows: list[Row]) -> tuple[float, str]:
    """The unit of the MACs, and what it is called at the axis."""
    small = min(row["macs_formula"] for row in rows) < 1e8
    unit, word = (1e6, "millions") if small else (1e9, "billions")
    return unit, f"multiply-adds of one image ({word})"


def _against(over: str) -> str:
    """What the exponents are of."""
    return "tokens" if over == "resolution" else over


def _between(rows: list[Row], x: float) -> float:
    """All MACs at x, on the straight line between two points in log-log."""
    # the first pair that does not end before x; values of factors are rounded
    pairs = itertools.pairwise(rows)
    low, high = next((p for p in pairs if x <= p[1]["value"]), (rows[-2], rows[-1]))
    share = math.log(x / low["value"]) / math.log(high["value"] / low["value"])
    return float(low["macs_formula"] ** (1 - share) * high["macs_formula"] ** share)


def _ticks(axes: Any, values: list[float]) -> None:
    """Ticks at points of the sweep, where there is room for them."""
    shown = values[-1:]
    for value in reversed(values[:-1]):
        if shown[0] / value > (values[-1] / values[0]) ** 0.09:
            shown.insert(0, value)
    axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.set_xticks([], minor=True)
