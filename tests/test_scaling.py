"""Sizes that grow with the image, and the curve between two points."""

import pytest

from analysis.counting.scaling import Series
from analysis.pictures import draw_curves
from backbones.specs.notation import parse


@pytest.mark.parametrize(("side", "size"), [
    (224, 7), (239, 7), (240, 8), (256, 8), (272, 9), (112, 4), (100, 3), (1, 1),
])  # fmt: skip
def test_a_size_that_grows_rounds_halves_up(side, size):
    """7 * side / 224, at least 1: 240 pixels are 7.5 tokens, and 112 are 3.5."""
    grown = Series("swin_t", parse("swin_t"), scale=True).at_image(side)
    assert grown.sizes == str(size)


def test_between_two_points_the_curve_is_straight_in_log_log():
    """From 4 at 2 to 64 at 8: the square of the value, at any point between."""
    rows = [{"value": v, "macs_formula": v**2} for v in (2, 8)]
    rows.append({"value": 16, "macs_formula": 1000})
    for x in (2, 2.5, 4, 7, 8):
        assert draw_curves._between(rows, x) == pytest.approx(x**2)
    assert draw_curves._between(rows, 16) == pytest.approx(1000)
