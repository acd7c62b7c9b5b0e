"""Growth of cost: series of points, and the exponents that fit them.

A series is a backbone or one mixer.  One axis is varied: the resolution, the size of its windows,
stripes and pales, its width or its depth.  Costs are MACs of one forward of one image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import linear_regression
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis.counting import paper_formulas
from backbones.specs.spec import BackboneSpec
from backbones.specs.stage import StageSpec
from transom.errors import SpecError
from transom.fields import write

if TYPE_CHECKING:
    from torch import nn

STRIDE = 4  # pixels per token of a mixer without a backbone
AXES = ("resolution", "size", "width", "depth")
SQUARE = "resolution", "size"  # axes of whole numbers, between which a crossing can be exact

Row = dict[str, Any]
Number = int | Fraction


class PointMacs(NamedTuple):
    """MACs of one image: the total, and those for mixing tokens, for positions and on pads."""

    total: int
    mixing: int
    position: int
    padding: int


@dataclass(frozen=True)
class Series:
    """One line of the figure.

    what: a backbone, or a block of which only the mixer counts.  scale: groups grow with the
    image, as size * image / base, so that their number is constant; otherwise their size is.
    """

    name: str
    what: BackboneSpec | StageSpec
    scale: bool = False
    base: tuple[int, int] = (224, 224)  # image in pixels that the stated sizes are for

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        return self.what.stages if isinstance(self.what, BackboneSpec) else (self.what,)

    @property
    def sizes(self) -> str:
        """The sizes of windows, stripes and pales, each once; "" where there are none."""
        mixers = [mixer for stage in self.stages for mixer in stage.mixers]
        found = [write(mixer.size) for mixer in mixers if hasattr(mixer, "size")]
        return " ".join(dict.fromkeys(found))

    @property
    def step(self) -> int:
        """Pixels per token of the first map."""
        return self.what.patch_size if isinstance(self.what, BackboneSpec) else STRIDE

    def edited(self, change: Callable[[StageSpec], StageSpec]) -> Series:
        """The series with every stage changed.  Raises SpecError with the stage."""
        stages = []
        for number, stage in enumerate(self.stages, start=1):
            place = f": stage {number}" if isinstance(self.what, BackboneSpec) else ""
            try:
                stages.append(change(stage))
            except SpecError as error:
                raise SpecError(f"{self.name}{place}: {error}") from None
        if isinstance(self.what, BackboneSpec):
            return replace(self, what=replace(self.what, stages=tuple(stages)))
        return replace(self, what=stages[0])

    def with_sizes(self, change: Callable[[tuple[int, int]], tuple[int, int]]) -> Series:
        """The series with the (height, width) of all windows, stripes and pales changed."""

        def resized(mixer: Any) -> Any:
            size = getattr(mixer, "size", None)
            if isinstance(size, int):  # a plug-in may know squares only
                return replace(mixer, size=change((size, size))[0])
            return replace(mixer, size=change(size)) if size else mixer

        return self.edited(
            lambda stage: replace(stage, mixers=tuple(map(resized, stage.mixers)))
        )  # fmt: skip

    def at_image(self, side: int) -> Series:
        """The series with the groups that its policy gives an image of side x side pixels."""
        if not self.scale:
            return self
        spec, (h, w) = self.what, self.base
        known = replace(self, what=spec.resolve()) if isinstance(spec, BackboneSpec) else self

        def grown(n: int, base: int) -> int:  # halves round up
            return max(1, (2 * n * side + base) // (2 * base))

        return known.with_sizes(lambda size: (grown(size[0], h), grown(size[1], w)))

    def multiplied(self, factor: Fraction, *fields: str) -> Series:
        """The series with fields of every stage times a factor.  Raises SpecError for a result that
        is no integer."""

        def change(stage: StageSpec) -> StageSpec:
            scaled: dict[str, Any] = {f: getattr(stage, f) * factor for f in fields}
            for field, value in scaled.items():
                if value.denominator > 1:
                    what = f"{factor} x {getattr(stage, field)} {field}"
                    raise SpecError(f"{what} is no whole number")
                scaled[field] = int(value)
            return replace(stage, **scaled)

        return self.edited(change)

    def at(self, over: str, value: Number, img_size: tuple[int, int]) -> Point:
        """The point of the series where the axis `over` has this value.

        img_size: (height, width) in pixels where the resolution is not varied.  A width multiplies
        the heads and keeps the channels per head.  Raises SpecError.
        """
        if over == "resolution":
            return Point(self.at_image(int(value)), (int(value), int(value)))
        if over == "size":
            side = int(value)
            return Point(self.with_sizes(lambda size: (side, side)), img_size)
        if over == "width":
            return Point(self.multiplied(Fraction(value), "heads", "dim"), img_size)
        if isinstance(self.what, StageSpec):
            raise SpecError(f"{self.name}: a mixer has no depth; sweep a --backbone")
        return Point(self.multiplied(Fraction(value), "depth"), img_size)


@functools.lru_cache(maxsize=16)  # a search for a crossing evaluates few models many times
def _model(what: BackboneSpec | StageSpec) -> nn.Module:
    import torch

    from attention.factory import build
    from backbones.model.backbone import HierarchicalBackbone

    with torch.device("meta"):
        if isinstance(what, BackboneSpec):
            return HierarchicalBackbone(what)
        return build(what.mixers[0], dim=what.dim, heads=what.heads)


class Point(NamedTuple):
    """A series at one value of its axis, and the (height, width) of the image in pixels."""

    series: Series
    image: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the first map, in tokens."""
        h, w = self.image
        return -(-h // self.series.step), -(-w // self.series.step)

    def macs(self) -> PointMacs:
        """MACs by the formulas that the modules state; nothing is run.  Raises SpecError."""
        model: Any = _model(self.series.what)
        try:
            if isinstance(self.series.what, StageSpec):
                cost = model.cost(*self.grid)
                return PointMacs(cost.total, cost.mixing, cost.position, cost.padding)
            parts = model.cost(*self.image)
        except NotImplementedError:
            raise SpecError(f"{self.series.name}: a mixer states no cost to sweep") from None
        mixing, position = (
            sum(part.macs for part in parts if part.column == column)
            for column in ("mixing", "position")
        )
        total, padding = sum(part.macs for part in parts), sum(part.padding for part in parts)
        return PointMacs(total, mixing, position, padding)

    def measure(self) -> Row:
        """A row with the MACs by formula and by torch's counter on the meta device.

        agree: both counts are equal, and equal to the paper's formula for a mixer whose sizes
        divide.  Raises SpecError.
        """
        from analysis.counting import counters

        macs, what = self.macs(), self.series.what
        formula, shape = None, (1, *self.grid, self.series.stages[0].dim)
        if isinstance(what, BackboneSpec):
            shape = (1, what.in_channels, *self.image)
        else:
            formula = paper_formulas.formula(what.mixers[0], *self.grid, what.dim)
        try:
            torch_tally = counters.on_meta(_model(what), shape)
        except RuntimeError as error:  # more elements than can be numbered
            reason = str(error).strip().splitlines()[0]
            place = "x".join(map(str, self.image))
            raise SpecError(f"{self.series.name} on {place} pixels: {reason}") from None
        agree = macs.total == torch_tally.macs[""] and not torch_tally.uncounted
        if formula and formula.divides:
            agree = agree and formula.macs == macs.total - macs.position
        return {
            "macs_formula": macs.total, "macs_torch": torch_tally.macs[""], "mixing": macs.mixing,
            "padding_%": round(100 * macs.padding / max(macs.total, 1), 4),
            "peak_bytes": torch_tally.peak_bytes, "agree": agree,
        }  # fmt: skip


def row_of(series: Series, over: str, value: Number, img_size: tuple[int, int]) -> Row:
    """A row: the series, its axis and value, tokens and channels of the first map, costs."""
    point = series.at(over, value, img_size)
    (h, w), (rows, cols) = point.image, point.grid
    shown = value if isinstance(value, int) else round(float(value), 4)
    return {
        "series": series.name, "over": over, "value": shown, "image": f"{h}x{w}",
        "tokens": rows * cols, "dim": point.series.stages[0].dim, "size": point.series.sizes,
        **point.measure(),
    }  # fmt: skip


def default_values(series: Series, over: str, img_size: tuple[int, int]) -> list[Number]:
    """Values of an axis that can be built: resolutions of 224 to 2016 pixels by 224, and 2048;
    sizes from 4 to 28; widths from 1/2 to 2; depths from 1/2 to 3."""
    if over == "resolution":
        return [*range(224, 2017, 224), 2048]
    if over == "size":
        return [4, 7, 8, 12, 14, 16, 20, 24, 28]
    factors = [Fraction(n, 2) for n in (1, 2, 3, 4, 6)]
    if over == "width":
        heads = series.stages[0].heads
        factors = [Fraction(n, heads) for n in range((heads + 1) // 2, 2 * heads + 1)]
    buildable: list[Number] = []
    for factor in factors:
        try:
            series.at(over, factor, img_size)
        except SpecError:
            continue
        buildable.append(factor)
    return buildable or [Fraction(1)]


# -- exponents -------------------------------------------------------------------------------


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The slope of the least-squares line through log y over log x; None if there is no line."""
    if len(set(xs)) < 2 or min(ys) <= 0:
        return None
    return linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def exponents(rows: Sequence[Row]) -> Row:
    """The exponents of one series over tokens, or over the axis that is varied.

    Points without padding are fitted where there are two or more, otherwise all, since padding
    makes a curve jump; `fitted` states which.
    """
    unpadded = [row for row in rows if not row["padding_%"]]
    fitted_rows = unpadded if len(unpadded) > 1 else list(rows)
    by = "tokens" if rows[0]["over"] == "resolution" else "value"
    xs = [row[by] for row in fitted_rows]
    if len(fitted_rows) < len(rows):
        fitted = f"{len(fitted_rows)} of {len(rows)} points, the sizes that divide"
    elif len(unpadded) == len(rows):
        fitted = f"all {len(rows)} points, no padding"
    else:
        worst = max(row["padding_%"] for row in rows)
        fitted = f"all {len(rows)} points, padded by up to {worst:.3g}%"
    return {
        "series": rows[0]["series"], "against": by if by == "tokens" else rows[0]["over"],
        "mixing": exponent(xs, [row["mixing"] for row in fitted_rows]),
        "total": exponent(xs, [row["macs_formula"] for row in fitted_rows]), "fitted": fitted,
    }  # fmt: skip
