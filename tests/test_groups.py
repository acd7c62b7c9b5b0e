"""A cut as integers: pads and pairs counted token by token."""

import pytest
import torch

from attention.geometry.axis import axis
from attention.geometry.groups import Groups


@pytest.mark.parametrize(("length", "extent", "options", "tally"), [
    (8, 4, {}, [4, 4]), (5, 4, {}, [4, 1]), (5, 4, {"shift": 2}, [3, 2]),
    (9, 4, {"shift": 2}, [4, 3, 2]), (10, 7, {"shift": 3}, [7, 3]), (11, 7, {"shift": 3}, [7, 4]),
    (5, 4, {"even": True}, [3, 2]), (7, 4, {"interlaced": True}, [4, 3]),
    (3, 4, {"shift": 2}, [3]), (5, 5, {"padded": 10}, [5, 0]),
    (12, 3, {"interval": 2}, [3, 3, 3, 3]), (8, 3, {"interval": 2}, [3, 3, 1, 1]),
    (9, 2, {"interval": 3}, [2, 2, 2, 1, 1, 1]),
])  # fmt: skip
def test_pairs_of_real_tokens(length, extent, options, tally):
    """tally: the real tokens of every group, as they lie after the shift."""
    assert axis(length, extent, **options).real_pairs() == sum(n * n for n in tally)


@pytest.mark.parametrize("length", range(1, 13))
def test_even_padding_has_its_smaller_part_first(length):
    a = axis(length, 4, even=True)
    after = a.padded - a.length - a.before
    assert a.padded % 4 == 0 and a.padded - length < 4 and after - a.before in (0, 1)


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [(1, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]), (2, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2]),
     (4, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])],
)  # fmt: skip
def test_an_interval_is_between_neighbours_and_the_whole_axis(interval, wanted):
    """1 is a run of neighbours, the number of groups the interlaced cut; between, a cut of cuts."""
    cut = axis(11, 3, interval=interval)
    assert (cut.padded, cut.n, cut.regions()) == (12, 4, wanted)
    assert [cut.group_of(p) for p in range(11)] == wanted
    assert cut.split(torch.arange(12)).tolist() == [
        [p for p in range(12) if cut.group_of(p) == group] for group in range(4)
    ]
    if interval == 4:
        assert cut == axis(11, 3, interlaced=True)


@pytest.mark.parametrize(("rows", "cols"), [(1, 2), (2, 4), (3, 2), (2, 2)])
def test_a_partition_of_two_cuts_is_reversed(rows, cols):
    """Each axis is cut by itself; what is split is merged again, for every pair of cuts."""
    groups = Groups(axis(11, 2, interval=rows), axis(13, 3, interval=cols))
    x = torch.arange(1.0, 1 + 11 * 13).view(1, 11, 13, 1)  # pads are 0
    tokens = groups.partition(x)
    assert tokens.shape == (1, groups.n, 6, 1) and torch.equal(groups.reverse(tokens), x)
    for query in ((0, 0), (4, 7), (10, 12)):
        (row,) = (t for t in tokens[0, :, :, 0] if (t == x[0, *query, 0]).any())
        seen = x[0, :, :, 0][groups.region(query)]
        assert set(seen.tolist()) == set(row[row != 0].tolist())
