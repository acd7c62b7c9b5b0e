"""How cost grows: series of points, and the exponents that fit them.

A series is a backbone or one mixer.  Varied is one thing: the resolution, the size of its windows,
stripes and pales, its width or its depth.  MACs of one forward of one image.
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
from backbones.specs.spec import BackboneSpec, StageSpec
from transom.errors import SpecError
from transom.fields import write

if TYPE_CHECKING:
    from torch import nn

STRIDE = 4  # pixels to a token of a mixer that stands alone
AXES = ("resolution", "size", "width", "depth")
SQUARE = "resolution", "size"  # axes of whole numbers, between which a crossing can be exact

Row = dict[str, Any]
Number = int | Fraction


class Spent(NamedTuple):
    """MACs of one image: all, in the mixing of tokens, in positions, and on pads."""

    total: int
    mixing: int
    position: int
    padding: int


@dataclass(frozen=True)
class Series:
    """One line of the figure.

    what: a backbone, or one block whose mixer stands alone.  scale: groups grow with the image, as
    size * image / base, so that their number stays; otherwise they are what they are.
    """

    name: str
    what: BackboneSpec | StageSpec
    scale: bool = False
    base: tuple[int, int] = (224, 224)  # the image that the stated sizes are for

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        return self.what.stages if isinstance(self.what, BackboneSpec) else (self.what,)

    @property
    def sizes(self) -> str:
        """The windows, stripes and pales, each once; empty where there are none."""
        mixers = [mixer for stage in self.stages for mixer in stage.mixers]
        found = [write(mixer.size) for mixer in mixers if hasattr(mixer, "size")]
        return " ".join(dict.fromkeys(found))

    @property
    def step(self) -> int:
        """Pixels to a token of the first map."""
        return self.what.patch_size if isinstance(self.what, BackboneSpec) else STRIDE

    def edited(self, change: Callable[[StageSpec], StageSpec]) -> Series:
        """With every stage changed.  Raises SpecError with the stage."""
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
        """Other windows, stripes and pales, (height, width) each, wherever a mixer has them."""

        def resized(mixer: Any) -> Any:
            size = getattr(mixer, "size", None)
            if isinstance(size, int):  # a plug-in may know squares only
                return replace(mixer, size=change((size, size))[0])
            return replace(mixer, size=change(size)) if size else mixer

        return self.edited(
            lambda stage: replace(stage, mixers=tuple(map(resized, stage.mixers)))
        )  # fmt: skip

    def at_image(self, side: int) -> Series:
        """With the groups that this policy gives an image of side x side pixels."""
        if not self.scale:
            return self
        spec, (h, w) = self.what, self.base
        known = replace(self, what=spec.resolve()) if isinstance(spec, BackboneSpec) else self

        def grown(n: int, base: int) -> int:  # halves round up
            return max(1, (2 * n * side + base) // (2 * base))

        return known.with_sizes(lambda size: (grown(size[0], h), grown(size[1], w)))

    def multiplied(self, factor: Fraction, *fields: str) -> Series:
        """With fields of every stage times a factor.  Raises SpecError for broken numbers."""

        def change(stage: StageSpec) -> StageSpec:
            made: dict[str, Any] = {f: getattr(stage, f) * factor for f in fields}
            for field, value in made.items():
                if value.denominator > 1:
                    what = f"{factor} x {getattr(stage, field)} {field}"
                    raise SpecError(f"{what} is no whole number")
                made[field] = int(value)
            return replace(stage, **made)

        return self.edited(change)

    def at(self, over: str, value: Number, img_size: tuple[int, int]) -> Point:
        """This series where the axis `over` has this value; img_size where it is not varied.

        A width multiplies the heads, each as wide as before.  Raises SpecError.
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


@functools.lru_cache(maxsize=16)  # a search for a crossing comes back to the same few
def _model(what: BackboneSpec | StageSpec) -> nn.Module:
    import torch

    from attention.registry import build
    from backbones.model.backbone import HierarchicalBackbone

    with torch.device("meta"):
        if isinstance(what, BackboneSpec):
            return HierarchicalBackbone(what)
        return build(what.mixers[0], dim=what.dim, heads=what.heads)


class Point(NamedTuple):
    """A series at one value: what is built, and for which image in pixels."""

    series: Series
    image: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the first map, in tokens."""
        h, w = self.image
        return -(-h // self.series.step), -(-w // self.series.step)

    def spent(self) -> Spent:
        """What the model states by its formulas; nothing is run.  Raises SpecError."""
        model: Any = _model(self.series.what)
        try:
            if isinstance(self.series.what, StageSpec):
                cost = model.cost(*self.grid)
                return Spent(cost.total, cost.mixing, cost.position, cost.padding)
            parts = model.cost(*self.image)
        except NotImplementedError:
            raise SpecError(f"{self.series.name}: a mixer states no cost to sweep") from None
        mixing, position = (
            sum(part.macs for part in parts if part.column == column)
            for column in ("mixing", "position")
        )
        total, padding = sum(part.macs for part in parts), sum(part.padding for part in parts)
        return Spent(total, mixing, position, padding)

    def measure(self) -> Row:
        """By formula, and by torch's counter on the meta device.  agree: both counts, and for a
        mixer whose sizes divide the paper's formula too.  Raises SpecError."""
        from analysis.counting import counters

        spent, what = self.spent(), self.series.what
        paper, shape = None, (1, *self.grid, self.series.stages[0].dim)
        if isinstance(what, BackboneSpec):
            shape = (1, what.in_channels, *self.image)
        else:
            paper = paper_formulas.formula(what.mixers[0], *self.grid, what.dim)
        try:
            witness = counters.on_meta(_model(what), shape)
        except RuntimeError as error:  # more elements than can be numbered
            reason = str(error).strip().splitlines()[0]
            place = "x".join(map(str, self.image))
            raise SpecError(f"{self.series.name} on {place} pixels: {reason}") from None
        agree = spent.total == witness.macs[""] and not witness.uncounted
        if paper and paper.divides:
            agree = agree and paper.macs == spent.total - spent.position
        return {
            "macs_formula": spent.total, "macs_torch": witness.macs[""], "mixing": spent.mixing,
            "padding_%": round(100 * spent.padding / max(spent.total, 1), 4),
            "peak_bytes": witness.peak_bytes, "agree": agree,
        }  # fmt: skip


def row_of(series: Series, over: str, value: Number, img_size: tuple[int, int]) -> Row:
    """A series, its axis, where it stands (the first map's tokens and channels), its cost."""
    point = series.at(over, value, img_size)
    (h, w), (rows, cols) = point.image, point.grid
    shown = value if isinstance(value, int) else round(float(value), 4)
    return {
        "series": series.name, "over": over, "value": shown, "image": f"{h}x{w}",
        "tokens": rows * cols, "dim": point.series.stages[0].dim, "size": point.series.sizes,
        **point.measure(),
    }  # fmt: skip


def default_values(series: Series, over: str, img_size: tuple[int, int]) -> list[Number]:
    """Resolutions that windows of 7 divide, up to 2016, and 2048; sizes; every width from a half
    to twice and every depth from a half to three times that can be built."""
    if over == "resolution":
        return [*range(224, 2017, 224), 2048]
    if over == "size":
        return [4, 7, 8, 12, 14, 16, 20, 24, 28]
    tries = [Fraction(n, 2) for n in (1, 2, 3, 4, 6)]
    if over == "width":
        heads = series.stages[0].heads
        tries = [Fraction(n, heads) for n in range((heads + 1) // 2, 2 * heads + 1)]
    known: list[Number] = []
    for factor in tries:
        try:
            series.at(over, factor, img_size)
        except SpecError:
            continue
        known.append(factor)
    return known or [Fraction(1)]


# -- exponents -------------------------------------------------------------------------------


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The slope of the least-squares line through log y over log x; None if there is no line."""
    if len(set(xs)) < 2 or min(ys) <= 0:
        return None
    return linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def exponents(rows: Sequence[Row]) -> Row:
    """The exponents of one series, against tokens or whatever else is varied.

    Points without padding are fitted, where there are two; otherwise all, and `fitted` says so:
    pads make a curve jump.
    """
    even = [row for row in rows if not row["padding_%"]]
    used = even if len(even) > 1 else list(rows)
    by = "tokens" if rows[0]["over"] == "resolution" else "value"
    xs = [row[by] for row in used]
    if len(used) < len(rows):
        fitted = f"{len(used)} of {len(rows)} points, the sizes that divide"
    elif len(even) == len(rows):
        fitted = f"all {len(rows)} points, no padding"
    else:
        worst = max(row["padding_%"] for row in rows)
        fitted = f"all {len(rows)} points, padded by up to {worst:.3g}%"
    return {
        "series": rows[0]["series"], "against": by if by == "tokens" else rows[0]["over"],
        "mixing": exponent(xs, [row["mixing"] for row in used]),
        "total": exponent(xs, [row["macs_formula"] for row in used]), "fitted": fitted,
    }  # fmt: skip
