"""Crossings of two cost series: between sampled points, exactly, and by the papers' formulas."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from analysis.counting import paper_formulas
from analysis.counting.scaling import SQUARE, Number, Row, Series
from backbones.specs.spec import BackboneSpec


def crossing(a: Series, b: Series, over: str, values: Sequence[Number],
             img_size: tuple[int, int], times: float = 1.0) -> Row:  # fmt: skip
    """The crossing from which the series that is dearer at the last value costs over `times` the
    other.

    Args:
        a: a series.
        b: another.
        over: the axis, of `scaling.AXES`.
        values: values of the axis in rising order; pixels, tokens or factors.
        img_size: (height, width) in pixels where the resolution is not swept.
        times: the factor.

    Returns:
        A row.  more, less: names of the dearer and the cheaper series.  sampled: the value where
        the straight lines between the points cross, in log-log.  exact: the smallest resolution (a
        multiple of the stem's stride) or size from which on the dearer one costs over `times` the
        other without exception, padding included; None for groups that scale.  tokens: the
        crossing of two mixers by the papers' formulas, a real number, without padding.  verdict:
        crosses, always, never or equal.
    """
    macs = functools.cache(lambda s, value: s.at(over, value, img_size).macs().total)
    more, less = (a, b) if macs(a, values[-1]) >= macs(b, values[-1]) else (b, a)
    row: Row = {"more": more.name, "less": less.name, "times": times, "sampled": None,
                  "exact": None, "tokens": None}  # fmt: skip

    def above(low: Number, high: Number) -> bool:
        return bool(macs(more, low) > times * macs(less, high))

    if not above(values[-1], values[-1]):
        return {**row, "verdict": "never" if times != 1 else "equal"}
    first = max((i for i, value in enumerate(values) if not above(value, value)), default=None)
    if first is not None:
        low, high = values[first : first + 2]
        gaps = [math.log(macs(more, v) / macs(less, v) / times) for v in (low, high)]
        row["sampled"] = float(low) * (float(high) / float(low)) ** (
            gaps[0] / (gaps[0] - gaps[1])
        )
    if over in SQUARE and not (a.scale or b.scale):
        step = math.lcm(a.step, b.step) if over == "resolution" else 1

        def holds(low: int, high: int) -> bool:
            # no smaller image costs more, so one comparison may settle a whole interval
            return above(low * step, high * step) if over == "resolution" or low == high else False

        last = last_failure(holds, 1, -(-int(values[-1]) // step))
        row["exact"] = None if last is None else (last + 1) * step
    if over == "resolution":
        row["tokens"] = tokens_by_formula(more, less, times)
    crossed = row["sampled"] is not None or row["exact"] is not None
    return {**row, "verdict": "crosses" if crossed else "always"}


def sentence(row: Row, over: str, values: Sequence[Number]) -> str:
    """A row of `crossing` in words."""
    unit = " pixels" if over == "resolution" else ""
    times, end = row["times"], f"up to {float(values[-1]):g}{unit}"
    more = f"{row['more']} costs {'more than' if times == 1 else f'{times:g} times'}"
    if row["verdict"] == "equal":
        return f"{row['more']} and {row['less']} cost the same at the end, {end[6:]}"
    if row["verdict"] == "never":
        return f"{more} {row['less']} at no point {end}"
    parts = []
    if row["exact"] is not None:
        parts.append(f"from {row['exact']}{unit} on, padding included")
    elif row["verdict"] == "always":
        parts.append(f"at every point {end}")
    if row["sampled"] is not None and row["exact"] is None:
        parts.append(f"the lines cross at {row['sampled']:.4g}{unit}")
    if row["tokens"] is not None:
        parts.append(f"by the formulas, without padding, from {row['tokens']:.6g} tokens")
    return f"{more} {row['less']}: {'; '.join(parts)}"


def last_failure(holds: Callable[[int, int], bool], low: int, high: int) -> int | None:
    """The largest number from low to high for which `holds` is false; None if there is none.

    holds: takes an interval; exact for a single number, and for a longer one true only if it holds
    everywhere inside.
    """
    if holds(low, high):
        return None
    if low == high:
        return low
    middle = (low + high) // 2
    later = last_failure(holds, middle + 1, high)
    return last_failure(holds, low, middle) if later is None else later


def tokens_by_formula(more: Series, less: Series, times: float = 1.0) -> float | None:
    """Tokens of the square grid where the papers' formulas of two mixers are equal, by bisection
    on its side up to 4096; None if they never are, or for series that are no mixers of fixed
    size."""
    if more.scale or less.scale:
        return None

    def gap(side: float) -> float | None:
        costs = []
        for series in (more, less):
            if isinstance(series.what, BackboneSpec):
                return None
            # the formulas are polynomials: a real side is as good as a whole one
            real: Any = side
            formula = paper_formulas.formula(series.what.mixers[0], real, real, series.what.dim)
            if formula is None:
                return None
            costs.append(formula.macs)
        return costs[0] - times * costs[1]

    low, high = 0.5, 4096.0
    ends = gap(low), gap(high)
    if ends[0] is None or ends[1] is None or ends[0] * ends[1] >= 0:
        return None
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        value = gap(middle)
        assert value is not None
        low, high = (middle, high) if value * ends[0] > 0 else (low, middle)
    return low * low
