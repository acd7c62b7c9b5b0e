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


def naive(mixer, x):
    """Every query by itself: its neighbours that are on the map, one after the other."""
    (gh, gw), heads = mixer.config.size, mixer.heads
    q, k, v = mixer.qkv(x).chunk(3, -1)
    _, h, w, c = x.shape
    d = c // heads
    out = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            near = [
                (y, z, (y - i + gh // 2) * gw + z - j + gw // 2)
                for y in range(h) for z in range(w)
                if 0 <= y - i + gh // 2 < gh and 0 <= z - j + gw // 2 < gw
            ]  # fmt: skip
            rows, cols, steps = (list(part) for part in zip(*near, strict=True))
            for m in range(heads):
                own = slice(m * d, (m + 1) * d)
                keys, values = k[:, rows, cols, own], v[:, rows, cols, own]
                scores = (keys @ q[:, i, j, own, None])[..., 0] * d**-0.5
                weights = (scores + mixer.table[steps, m]).softmax(-1)
                out[:, i, j, own] = (weights[:, None] @ values)[:, 0]
    return mixer.proj(out)


def made(text: str, *, dim: int = 8, heads: int = 2, index: int = 1):
    return randomise(attention.create(text, dim=dim, heads=heads, index=index)).double()


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_sliding_is_its_definition(h, w, gh, gw):
    mixer, x = made(f"sliding:size={gh}x{gw}"), images(2, h, w, 8).double()
    with torch.no_grad():
        assert error(mixer(x), naive(mixer, x)) < 1e-12


@torch.no_grad()
def test_sliding_is_a_block_of_one_with_a_halo():
    """Whose borders hide what is off the map; those of `neighbourhood` move inward instead."""
    sliding, x = made("sliding:size=3"), images(2, 6, 7, 8).double()
    halo = made("halo:block=1,radius=1,position=bias,mask_padding=true")
    halo.load_state_dict({**halo.state_dict(), **{
        name: p for name, p in sliding.state_dict().items() if name != "table"
    }})  # fmt: skip
    steps = halo.branch.bias.table.unflatten(0, (5, 5))  # by query - key, as far as 2
    steps[1:4, 1:4] = sliding.table.unflatten(0, (3, 3)).flip(0, 1)  # by key - query
    assert error(halo(x), sliding(x)) < 1e-12
    near = made("neighbourhood:kernel=3")
    near.load_state_dict(halo.state_dict())
    assert error(near(x)[:, 1:-1, 1:-1], halo(x)[:, 1:-1, 1:-1]) < 1e-12
    assert error(near(x), halo(x)) > 1e-3


def test_another_neighbourhood_is_another_answer():
    """Negative controls: a step to the side, and zeros off the map that are keys."""
    mixer, x = made("sliding:size=3"), images(1, 6, 6, 8).double()
    with torch.no_grad():
        wanted = naive(mixer, x)
        assert error(mixer(x.roll(1, 2)).roll(-1, 2), wanted) > 1e-3
        mixer._windows = lambda t, real=mixer._windows: real(t) + (t.shape[-1] == 1)
        assert error(mixer(x), wanted) > 1e-3


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.parametrize("size", ["3", "4x2"])
def test_sliding_by_flex_attention_is_the_same(size):
    gathered, x = made(f"sliding:size={size}", dim=32).float(), images(2, 5, 7, 32)
    flex = made(f"sliding:size={size},way=flex", dim=32).float()
    flex.load_state_dict(gathered.state_dict())
    with torch.no_grad():
        assert error(flex(x), gathered(x)) < 1e-5


def test_flex_attention_is_refused_by_name_where_it_cannot_run():
    flex = made("sliding:size=3,way=flex", dim=32)
    with pytest.raises(SpecError, match=r"way=flex.*no backward pass on a CPU"):
        flex(images(1, 5, 7, 32).double())


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


@pytest.mark.parametrize("text", ["sliding:size=3", "sliding:size=4x2", "padded:size=4"])
def test_what_it_costs_is_what_is_counted(text):
    with torch.device("meta"):
        mixer = attention.create(text, dim=8, heads=2, index=1)
    counted = counters.on_meta(mixer, (1, 9, 12, 8)).macs[""]
    assert mixer.cost(9, 12).total == counted
