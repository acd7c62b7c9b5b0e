"""The Pareto front of two columns of a comparison: what no other model beats in both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.pictures import figure_style
from analysis.pictures.figure_style import COLORS, FAINT, INK, Point, words
from transom.errors import SpecError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


@dataclass(frozen=True)
class Axis:
    """A column that an axis shows.

    key: in a row of the comparison.  label: with its unit.  scale: of a row's number in that unit.
    less: whether less is better.  published: whether the comparison takes it from papers.
    """

    key: str
    label: str
    scale: float = 1.0
    less: bool = True
    published: bool = False


AXES = {
    "macs": Axis("macs", "multiply-adds of one image, G", 1e-9),
    "params": Axis("params", "parameters, M", 1e-6),
    "activations": Axis("infer_macts", "outputs of products of one image, M"),
    "padding": Axis("padding_%", "multiply-adds on padding, %"),
    "latency": Axis("latency_ms", "latency of a batch, ms"),
    "throughput": Axis("images_per_s", "throughput, images/s", less=False),
    "memory": Axis("peak_mib", "peak memory, MiB"),
    "accuracy": Axis("top1", "ImageNet-1K top-1, %", less=False, published=True),
    "miou": Axis("miou", "ADE20K mIoU, %", less=False, published=True),
    "box_ap": Axis("box_ap", "COCO box AP, %", less=False, published=True),
    "mask_ap": Axis("mask_ap", "COCO mask AP, %", less=False, published=True),
}  # fmt: skip
MEASURED = ("latency", "throughput", "memory")  # which a comparison has with --measure only
DECADE = 10.0  # a range of more is logarithmic
PAD = 1.5  # pixels around a label, and of half a line
STEP = 4.0  # pixels between two places of a line that labels keep free
SCALES = (1.0, 1.3, 1.7, 2.2, 3.0)  # of the figure, until all labels have room


def axis(name: str, option: str) -> Axis:
    """The axis of a name of `AXES`.  Raises SpecError."""
    if name not in AXES:
        raise SpecError(f"{option} {name}: is no column of a figure{nearest(name, AXES)}")
    return AXES[name]


def front(points: Sequence[tuple[float, float]], *, less: tuple[bool, bool]) -> list[int]:
    """Indices of the points that no other point dominates, by ascending x.

    A point dominates another if it is at least as good in both and better in one; equal points
    do not dominate each other.

    Args:
        points: (x, y).
        less: whether less is better, of x and of y.

    Example:
        >>> from analysis.pictures.draw_front import front
        >>> front([(4.5, 81.3), (4.2, 82.7), (9.6, 83.6)], less=(True, False))
        [1, 2]
    """
    signs = [1.0 if flag else -1.0 for flag in less]
    costs = [(signs[0] * x, signs[1] * y) for x, y in points]
    found: list[int] = []
    best, at = math.inf, math.inf  # the least y so far and the first x that has it
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        x, y = costs[i]
        if y < best or (y == best and x == at):
            found.append(i)
            best, at = y, x
    return sorted(found, key=lambda i: (points[i], i))


def draw(rows: Sequence[Row], x: str, y: str, out: Path, *, describe: bool = False) -> None:
    """Writes the figure of `picture`, and with `describe` its text beside it.  Raises SpecError."""
    import matplotlib

    shown, text = picture(rows, x, y)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be searched
        figure_style.save(shown, out, describe=text if describe else None)


def picture(rows: Sequence[Row], x: str, y: str) -> tuple[Figure, str]:
    """(figure, alt text) of the Pareto front of two columns.

    Args:
        rows: of analysis.compare: "model" and the columns of the axes; one without a number in
            both is left out.  Optional: "library", "infer_img_size", "source" of the published
            figures, and "second_hand", the keys whose numbers were neither measured nor counted.
        x, y: names of `AXES`.

    Raises:
        SpecError: for an unknown name, twice the same, or no row with both numbers.
    """
    across, up = axis(x, "--x"), axis(y, "--y")
    if across == up:
        raise SpecError(f"--y {y}: is on the other axis already")
    used = [row for row in rows if _is_number(row.get(across.key), row.get(up.key))]
    if not used:
        hint = "; add --measure" if {x, y} & {*MEASURED} else ""
        raise SpecError(f"--figure: no row has both {x} and {y}{hint}")
    points = [
        Point(label, row[across.key] * across.scale, row[up.key] * up.scale)
        for label, row in zip(_labels(used), used, strict=True)
    ]
    on_front = front([(p.x, p.y) for p in points], less=(across.less, up.less))
    hollow = [any(_second_hand(row, chosen) for chosen in (across, up)) for row in used]
    for scale in SCALES:
        shown, axes = _plot(points, on_front, hollow, (across, up), scale)
        if _place(shown, axes, points, on_front):
            break
    better = " and ".join(
        f"{'less' if chosen.less else 'more'} of {name}"
        for name, chosen in zip((x, y), (across, up), strict=True)
    )
    what = f"Pareto front of {len(points)} models, where {better} is better."
    text = figure_style.described(what, across.label, up.label, points)
    names = ", ".join(points[i].label for i in on_front)
    best_x = (min if across.less else max)(points, key=lambda p: p.x)
    best_y = (min if up.less else max)(points, key=lambda p: p.y)
    text += f"\nOn the front, by {x}: {names}."
    text += f"\nBest in {x}: {best_x.label}. Best in {y}: {best_y.label}."
    if any(hollow):
        names = ", ".join(p.label for p, flag in zip(points, hollow, strict=True) if flag)
        text += f"\nHollow, with a number that was published and not measured here: {names}."
    if missing := [str(row.get("model")) for row in rows if row not in used]:
        text += f"\nLeft out, without a number: {', '.join(missing)}."
    return shown, text


def _is_number(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _second_hand(row: Row, chosen: Axis) -> bool:
    if "second_hand" in row:
        return chosen.key in row["second_hand"]
    return chosen.published and bool(row.get("source"))


def _labels(rows: Sequence[Row]) -> list[str]:
    """Names of the models, with their size where a name stands twice."""
    names = []
    for row in rows:
        library = row.get("library") or "transom"
        names.append(row["model"] if library == "transom" else f"{library}:{row['model']}")
    return [
        f"{name} {row.get('infer_img_size', '')}".strip() if names.count(name) > 1 else str(name)
        for name, row in zip(names, rows, strict=True)
    ]


def _plot(
    points: Sequence[Point], on_front: Sequence[int], hollow: Sequence[bool],
    both: tuple[Axis, Axis], scale: float,
) -> tuple[Figure, Any]:  # fmt: skip
    """The figure without labels, whose axes stay where they are."""
    shown = figure_style.figure(6.4 * scale, 4.6 * scale)
    axes = shown.subplots()
    line = [points[i] for i in on_front]
    axes.plot(
        [p.x for p in line], [p.y for p in line], color=COLORS[0], linewidth=1, zorder=1,
        gid="front", label="Pareto front",
    )  # fmt: skip
    for i, (point, is_hollow) in enumerate(zip(points, hollow, strict=True)):
        color = COLORS[0] if i in on_front else INK
        axes.plot(
            [point.x], [point.y], "o", markersize=5, color=color, zorder=2,
            markerfacecolor="white" if is_hollow else color,
            gid=f"{'hollow' if is_hollow else 'filled'}:{words(point.label).strip()}",
        )  # fmt: skip
    if any(hollow):
        axes.plot(
            [], [], "o", markersize=5, color=INK, markerfacecolor="white", linestyle="",
            label="with a published number",
        )  # fmt: skip
    if not all(hollow):
        axes.plot(
            [], [], "o", markersize=5, color=INK, linestyle="", label="measured or counted here"
        )
    values = [[p.x for p in points], [p.y for p in points]]
    for name, chosen, numbers in zip("xy", both, values, strict=True):
        if name == "x" and min(numbers) > 0 and max(numbers) > DECADE * min(numbers):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        # the corner to look at
        getattr(axes, f"set_{name}label")(
            f"{chosen.label} ({'less' if chosen.less else 'more'} is better)"
        )
    axes.margins(0.12)
    axes.grid(True, which="major", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    shown.legend(loc="outside upper center", ncols=3, fontsize=8)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(shown)  # which measures texts
    shown.draw_without_rendering()
    shown.set_layout_engine("none")
    return shown, axes


# -- labels ----------------------------------------------------------------------------------


def _place(shown: Figure, axes: Any, points: Sequence[Point], line: Sequence[int]) -> bool:
    """Adds the labels, each at the nearest place free of labels, points and the front's line;
    False where one had none.

    Points with the most neighbours choose first.
    """
    pixels = axes.transData.transform([(p.x, p.y) for p in points])
    radius = 4.0 * shown.dpi / 72
    taken: list[Box] = [(x - radius, y - radius, x + radius, y + radius) for x, y in pixels]
    for (x, y), (end_x, end_y) in itertools.pairwise(pixels[i] for i in line):
        steps = 1 + int(math.dist((x, y), (end_x, end_y)) / STEP)
        for step in range(steps):
            at = x + (end_x - x) * step / steps, y + (end_y - y) * step / steps
            taken.append((at[0] - PAD, at[1] - PAD, at[0] + PAD, at[1] + PAD))
    room = tuple(axes.get_window_extent().extents)
    texts = [
        axes.annotate(
            words(point.label), (point.x, point.y), (0, 0), textcoords="offset pixels",
            fontsize=8, ha="center", va="center", gid=f"label:{words(point.label).strip()}",
        )
        for point in points
    ]  # fmt: skip
    crowd = [sum(math.dist(a, b) < 80 for b in pixels) for a in pixels]
    all_fit = True
    for i in sorted(range(len(points)), key=lambda i: (-crowd[i], i)):
        extent = texts[i].get_window_extent()
        half = extent.width / 2 + PAD, extent.height / 2 + PAD
        at = pixels[i]
        for dx, dy in _around(half, radius):
            box = (at[0] + dx - half[0], at[1] + dy - half[1],
                   at[0] + dx + half[0], at[1] + dy + half[1])  # fmt: skip
            if _inside(box, room) and not any(overlap(box, other) for other in taken):
                break
        else:
            all_fit = False
        taken.append(box)
        texts[i].set_position((dx * 72 / shown.dpi, dy * 72 / shown.dpi))
        texts[i].set_anncoords("offset points")
        gap = max(abs(dx) - half[0], abs(dy) - half[1])
        if gap > 2 * radius:  # far from its point: a line to it
            x, y = axes.transData.inverted().transform((at[0] + dx, at[1] + dy))
            axes.plot([points[i].x, x], [points[i].y, y], color=FAINT, linewidth=0.6, zorder=0)
    return all_fit


def _around(half: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """Offsets of a label's centre, the nearest first: right, left, above, below, corners."""
    found = []
    for ring in range(12):
        w, h = half[0] + radius * (1 + ring), half[1] + radius * (0.6 + ring)
        steps = (1, -1, 0, 0.5, -0.5)
        sides = [(w, 0.0), (-w, 0.0), (0.0, h), (0.0, -h)]
        sides += [
            place for a, b in itertools.product(steps, repeat=2)
            for place in ((a * w, h), (a * w, -h), (w, b * h), (-w, b * h))
        ]  # fmt: skip
        found += sides
    return found


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(box: Box, room: Box) -> bool:
    return box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
