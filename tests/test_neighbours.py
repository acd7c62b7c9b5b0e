"""The ways to connect windows of the Swin paper's Table 5, each against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import error, images

import attention
from analysis.counting import counters
from analysis.models.influence import randomise
from transom.errors import SpecError

pytestmark = pytest.mark.usefixtures("neighbours")


def made(text: str, *, dim: int = 8, heads: int = 2, index: int = 1):
    return randomise(attention.create(text, dim=dim, heads=heads, index=index)).double()


@settings(max_examples=40)
@given(st.data(), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3))
def test_windows_that_borders_move_are_those_of_the_mixer(data, kernel, dilation):
    """The pairs and their steps; negative control: windows that borders do not move."""
    from benchmarks.neighbours import steps  # here, where the mixers it adds are taken back

    length = data.draw(st.integers(kernel * dilation, 24))
    mixer = attention.create(f"neighbourhood:kernel={kernel},dilation={dilation}", dim=2, heads=1)
    step, attends = steps(length, kernel, dilation, torch.device("cpu"))
    least = kernel * dilation
    for query in range(length):
        column = mixer.region(length, least, (query, 0)).any(1)
        assert attends[query].tolist() == column.tolist()
        for key in attends[query].nonzero().flatten().tolist():
            assert step[query, key] == (query - key) // dilation + kernel - 1
    unmoved = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= kernel // 2
    assert kernel == 1 or dilation > 1 or not attends.equal(unmoved)


@pytest.mark.slow  # each compiles for a minute
@pytest.mark.parametrize(
    ("options", "size"), [("kernel=3,dilation=2", (9, 12)), ("kernel=5,position=none", (2, 7))]
)
def test_flex_attention_is_the_same(options, size):
    """On a map that the windows do not pad, and on one that they do."""
    tiles = made(f"neighbourhood:{options}", dim=32).float()
    flex = made(f"flex:{options}", dim=32).float()
    flex.load_state_dict(tiles.state_dict())
    x = images(2, *size, 32)
    with torch.no_grad():
        assert error(flex(x), tiles(x)) < 1e-5


def test_flex_attention_is_refused_by_name_where_it_cannot_run():
    with pytest.raises(SpecError, match=r"flex:kernel=3: .*no backward pass on a CPU"):
        made("flex:kernel=3", dim=32)(images(1, 5, 7, 32).double())


@pytest.mark.parametrize("grid", [(14, 14), (7, 21), (7, 7), (28, 14)])
@pytest.mark.parametrize("index", [0, 1])
def test_padding_equals_the_cyclic_shift(grid, index):
    """On the same weights; negative control: with pads to be seen it does not."""
    cyclic, x = made("window:size=7", index=index), images(2, *grid, 8).double()
    for text, equal in (("padded:size=7", True), ("padded:size=7,mask_padding=false", False)):
        padded = made(text, index=index)
        padded.load_state_dict(cyclic.state_dict())
        with torch.no_grad():
            same = error(padded(x), cyclic(x)) < 1e-12
        assert same == (equal or index == 0 or grid == (7, 7))
        shifted = index == 1 and grid != (7, 7)
        assert (padded.cost(*grid).total > cyclic.cost(*grid).total) == shifted


@pytest.mark.parametrize("text", ["flex:kernel=3", "flex:kernel=3,dilation=2", "padded:size=4"])
def test_what_it_costs_is_what_is_counted(text):
    with torch.device("meta"):
        mixer = attention.create(text, dim=8, heads=2, index=1)
    counted = counters.on_meta(mixer, (1, 9, 12, 8)).macs[""]
    assert mixer.cost(9, 12).total == counted
