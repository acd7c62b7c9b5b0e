"""Where positions are read: every entry of a table by its own step, height and width apart."""

import itertools
import math

import pytest
import torch

from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.softmax.position import LogCPB, RelativeBias, log_steps, relative_index

EXTENTS = [(2, 3), (3, 2), (1, 4), (4, 1)]


def groups_of(gh, gw):
    return Groups(axis(gh, gh), axis(gw, gw))


def pairs_of(gh, gw):
    """(query, key, rows from key to query, columns from key to query) of every pair of tokens."""
    tokens = list(itertools.product(range(gh), range(gw)))
    for (q, (i, j)), (k, (y, x)) in itertools.product(enumerate(tokens), repeat=2):
        yield q, k, i - y, j - x


@pytest.mark.parametrize(("gh", "gw"), EXTENTS)
def test_a_table_is_read_row_by_row_by_query_minus_key(gh, gw):
    """Entry (rows + gh - 1, columns + gw - 1) of a (2gh - 1) x (2gw - 1) table, in this order."""
    bias = RelativeBias(2, (gh, gw))
    picture = torch.randn(2, 2 * gh - 1, 2 * gw - 1)
    with torch.no_grad():
        bias.table.copy_(picture.flatten(1).T)
        found = bias(groups_of(gh, gw))
    for q, k, rows, cols in pairs_of(gh, gw):
        assert torch.equal(found[:, q, k], picture[:, rows + gh - 1, cols + gw - 1]), (q, k)


@pytest.mark.parametrize(("gh", "gw"), EXTENTS)
def test_every_step_has_an_entry_of_its_own(gh, gw):
    index = relative_index(gh, gw, torch.device("cpu"))
    steps = {(rows, cols): int(index[q, k]) for q, k, rows, cols in pairs_of(gh, gw)}
    assert sorted(steps.values()) == list(range((2 * gh - 1) * (2 * gw - 1)))


def test_log_steps_are_height_first_and_end_at_one():
    """sign(x) log2(8 |x| + 1) / log2(8) of steps x over the side of the unit less 1."""
    steps = log_steps((2, 3), (3, 5), torch.zeros((), dtype=torch.float64)).unflatten(0, (3, 5))
    for i, j in itertools.product(range(3), range(5)):
        for value, x in zip(steps[i, j].tolist(), ((i - 1) / 2, (j - 2) / 4), strict=True):
            wanted = math.copysign(math.log2(8 * abs(x) + 1) / 3, x)
            assert value == pytest.approx(wanted, abs=1e-12)
    ends = log_steps((3, 5), (3, 5), torch.zeros(()))
    assert ends[0].tolist() == pytest.approx([-math.log2(9) / 3] * 2)


def test_a_stated_window_gives_a_step_one_bias_in_any_group():
    """With pretrained_window the coordinates are those it was trained in; without, the group's."""
    gh, gw = 3, 4
    for pretrained, equal in (((5, 2), True), (None, False)):
        bias = LogCPB(2, pretrained)
        with torch.no_grad():
            for parameter in bias.mlp.parameters():
                torch.nn.init.normal_(parameter)
            large, small = bias(groups_of(2 * gh, 2 * gw)), bias(groups_of(gh, gw))
        here = {(rows, cols): large[:, q, k] for q, k, rows, cols in pairs_of(2 * gh, 2 * gw)}
        off = max(
            float((small[:, q, k] - here[rows, cols]).abs().max())
            for q, k, rows, cols in pairs_of(gh, gw)
        )
        assert (off < 1e-4) == equal, off
