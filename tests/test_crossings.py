"""Where one series overtakes another: the last of several points, to the end without exception."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from analysis.counting import crossings
from analysis.counting.scaling import Series
from attention.configs.notation import parse
from backbones.specs.stage import StageSpec


@dataclass(frozen=True)
class Costs:
    """A series that costs what is stated, value by value."""

    name: str
    by_value: tuple
    scale: bool = False
    step: int = 4
    what: object = None

    def at(self, over, value, img_size):
        return SimpleNamespace(macs=lambda: SimpleNamespace(total=dict(self.by_value)[value]))


def costs(name, **values):
    return Costs(name, tuple((int(key[1:]), value) for key, value in values.items()))


def cross(a, b, values, times=1.0):
    return crossings.crossing(a, b, "width", values, (224, 224), times)


def test_of_two_points_the_last_is_the_crossing():
    """Under at 1, above at 2, under at 4, above from 8 on: they cross between 4 and 8."""
    steep = costs("steep", v1=2, v2=9, v4=8, v8=64, v16=99)
    flat = costs("flat", v1=4, v2=3, v4=16, v8=32, v16=40)
    values = [1, 2, 4, 8, 16]
    found = cross(steep, flat, values)
    # log ratios: -log 2 at 4, +log 2 at 8: half way in log
    assert found["sampled"] == pytest.approx(4 * math.sqrt(2))
    assert (found["more"], found["less"], found["verdict"]) == ("steep", "flat", "crosses")
    assert cross(flat, steep, values) == found


def test_a_tie_is_not_yet_more():
    """Equal at 2, more from 4 on: they cross at 2 itself."""
    found = cross(costs("a", v1=1, v2=3, v4=9), costs("b", v1=2, v2=3, v4=4), [1, 2, 4])
    assert found["sampled"] == pytest.approx(2)


def test_where_the_first_value_is_above_there_is_no_point():
    found = cross(costs("a", v1=2, v2=3), costs("b", v1=1, v2=1), [1, 2])
    assert (found["sampled"], found["exact"], found["verdict"]) == (None, None, "always")


def test_the_point_moves_with_the_factor():
    a, b = costs("a", v1=1, v4=16), costs("b", v1=1, v4=1)
    assert cross(a, b, [1, 4])["sampled"] == pytest.approx(1)
    assert cross(a, b, [1, 4], 4)["sampled"] == pytest.approx(2)
    assert cross(a, b, [1, 4], 20)["verdict"] == "never"


def test_the_exact_point_is_after_the_last_exception():
    """Windows of 4 on grids of 1 to 9: those that pad cost more than full attention, now and
    then; from the stated resolution on, up to the last, none does."""
    window, full = (
        Series(text, StageSpec(dim=8, depth=1, heads=2, mixers=(parse(text),)))
        for text in ("window:size=4", "full")
    )
    spent = {
        s.name: [s.at("resolution", 4 * n, (1, 1)).macs().total for n in range(1, 10)]
        for s in (window, full)
    }
    dearer = [f > w for f, w in zip(spent["full"], spent["window:size=4"], strict=True)]
    found = crossings.crossing(window, full, "resolution", [4, 36], (224, 224))
    first = found["exact"] // 4 - 1
    assert all(dearer[first:]) and not dearer[first - 1] and 0 < first < 8
