"""A cut as integers: pads and pairs counted token by token."""

import pytest

from attention.geometry.axis import axis


@pytest.mark.parametrize(("length", "extent", "options", "tally"), [
    (8, 4, {}, [4, 4]), (5, 4, {}, [4, 1]), (5, 4, {"shift": 2}, [3, 2]),
    (9, 4, {"shift": 2}, [4, 3, 2]), (10, 7, {"shift": 3}, [7, 3]), (11, 7, {"shift": 3}, [7, 4]),
    (5, 4, {"even": True}, [3, 2]), (7, 4, {"interlaced": True}, [4, 3]),
    (3, 4, {"shift": 2}, [3]), (5, 5, {"padded": 10}, [5, 0]),
])  # fmt: skip
def test_pairs_of_real_tokens(length, extent, options, tally):
    """tally: the real tokens of every group, as they lie after the shift."""
    assert axis(length, extent, **options).real_pairs() == sum(n * n for n in tally)


@pytest.mark.parametrize("length", range(1, 13))
def test_even_padding_has_its_smaller_part_first(length):
    a = axis(length, 4, even=True)
    after = a.padded - a.length - a.before
    assert a.padded % 4 == 0 and a.padded - length < 4 and after - a.before in (0, 1)
