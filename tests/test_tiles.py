"""Neighbourhood and halo attention: their two bodies, their limits, and other people's code."""

from __future__ import annotations

import random

import pytest
import tiny
import torch
from strategies import draw_case, randomise
from tiny import error, images
from torch.utils.flop_counter import FlopCounterMode

import attention
import backbones
from attention.execution import chunks
from attention.geometry.tiles import TileAxis, Tiles
from attention.mixers import neighbours
from backbones.weights import WeightsError
from backbones.weights.infer_spec import infer
from backbones.weights.saving import export
from transom.errors import SpecError


def made(text: str, *, dim: int = 8, heads: int = 2, seed: int = 0):
    return randomise(attention.create(text, dim=dim, heads=heads), seed).double().eval()


def likened(mixer, other):
    """`mixer` with the layers of `other`."""
    own = {name: p for name, p in other.state_dict().items() if name in mixer.state_dict()}
    mixer.load_state_dict(own, strict=False)
    return mixer


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_observed_and_tiled_are_equal(seed, monkeypatch):
    """The body that a counter sees; tiles of any sides, at once and in parts."""
    rng = random.Random(seed)
    case = draw_case(rng, "neighbourhood", side=20)
    mixer, x = case.build(), case.input(2)
    with FlopCounterMode(display=False):
        gathered = mixer(x)
    for bound in (chunks.TILES, 1):
        monkeypatch.setattr(chunks, "TILES", bound)
        sides = (rng.choice([1, 2, 3, 5, 8, 30]), rng.choice([1, 2, 3, 4, 7, 30]))
        monkeypatch.setattr(neighbours, "LONGEST", sides)
        assert error(mixer(x), gathered) < 1e-12


@torch.no_grad()
def test_a_window_of_the_whole_map_is_full_attention():
    mixer = made("neighbourhood:kernel=7,position=none")
    full = likened(made("full"), mixer)
    x = images(2, 7, 7, 8).double()
    assert error(mixer(x), full(x)) < 1e-12
    assert error(mixer(images(2, 7, 8, 8).double()), full(images(2, 7, 8, 8).double())) > 1e-3


@torch.no_grad()
def test_the_largest_dilation_is_interlaced_groups():
    mixer = made("neighbourhood:kernel=5,dilation=3")
    groups = attention.create("shuffle:size=5", dim=8, heads=2, index=1).double().eval()
    groups.load_state_dict(mixer.state_dict())
    x = images(2, 15, 15, 8).double()
    assert error(mixer(x), groups(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 12), (9, 7), (1, 1)])
def test_without_a_halo_blocks_are_windows(grid):
    """Where they pad, `window` shows the projection's bias, and blocks zeros: hidden in both."""
    halo = made("halo:block=4,radius=0,position=bias,mask_padding=true")
    window = made("window:size=4,shift=false,mask_padding=true")
    window.load_state_dict(halo.state_dict())
    x = images(2, *grid, 8).double()
    assert error(halo(x), window(x)) < 1e-12


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "radius", "grid"), [(4, 1, (8, 12)), (7, 3, (14, 7)), (2, 3, (6, 6))]
)
def test_halo_is_timms(block, radius, grid):
    """Negative controls: other rows of the tables, and hidden pads."""
    from timm.layers.halo_attn import HaloAttn

    text = f"halo:block={block},radius={radius},proj=false,qkv_bias=false"
    mixer = made(text, dim=16, heads=2)
    theirs = HaloAttn(16, num_heads=2, block_size=block, halo_size=radius).double().eval()
    q, k, v = mixer.qkv.weight.chunk(3)
    theirs.q.weight.copy_(q[..., None, None])
    kv = torch.cat([part.unflatten(0, (2, 8)) for part in (k, v)], dim=1)  # by head: keys, values
    theirs.kv.weight.copy_(kv.flatten(0, 1)[..., None, None])
    theirs.pos_embed.height_rel.copy_(mixer.branch.relative.rows.weight)
    theirs.pos_embed.width_rel.copy_(mixer.branch.relative.cols.weight)
    x = images(2, *grid, 16).double()
    wanted = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert error(mixer(x), wanted) < 1e-10
    hiding = made(text + ",mask_padding=true", dim=16, heads=2)
    hiding.load_state_dict(mixer.state_dict())
    assert error(hiding(x), wanted) > 1e-3
    mixer.branch.relative.rows.weight.copy_(mixer.branch.relative.rows.weight.flip(0))
    assert error(mixer(x), wanted) > 1e-3


@torch.no_grad()
def test_stand_alone_self_attention_is_a_block_of_one():
    """With the borders of a neighbourhood away, both have the same windows."""
    halo = made("halo:block=1,radius=2,position=bias")
    near = made("neighbourhood:kernel=5")
    near.load_state_dict(halo.state_dict())
    x = images(2, 11, 9, 8).double()
    inner = slice(2, -2)
    assert error(halo(x)[:, inner, inner], near(x)[:, inner, inner]) < 1e-12
    assert error(halo(x), near(x)) > 1e-3


@torch.no_grad()
def test_borders_look_inward():
    """Exactly k * k keys everywhere: the shift of a table's rows at borders is the position."""
    mixer = made("neighbourhood:kernel=3")
    for query, rows, cols in [((0, 0), range(3), range(3)), ((4, 2), range(2, 5), range(1, 4))]:
        seen = mixer.region(5, 6, query).nonzero().tolist()
        assert seen == [[r, c] for r in rows for c in cols]


@torch.no_grad()
@pytest.mark.parametrize("text", ["neighbourhood:kernel=3,dilation=2", "halo:block=3,radius=1"])
def test_corners_of_the_input(text):
    mixer = made(text).float()
    assert mixer(torch.zeros(0, 5, 7, 8)).shape == (0, 5, 7, 8)
    assert mixer(torch.zeros(2, 5, 7, 8, device="cpu").bfloat16().float()).isfinite().all()
    x = images(2, 9, 10, 8)
    half = mixer.bfloat16()(x.bfloat16()).float()
    assert error(half, mixer.float()(x)) < 0.1
    assert mixer.to("meta")(torch.empty(2, 5, 7, 8, device="meta")).shape == (2, 5, 7, 8)


def test_what_has_no_meaning_is_refused():
    for text, why in [
        ("neighbourhood:kernel=4", "an odd number"),
        ("neighbourhood:position=lepe", "one of none, bias, log_cpb"),
        ("halo:radius=-1", "0 or a whole number"),
        ("neighbourhood:shift=true", "no option 'shift'"),
    ]:
        with pytest.raises(SpecError, match=why):
            attention.parse(text)


@pytest.mark.parametrize("seed", range(8))
def test_every_key_of_a_query_is_in_its_tile(seed):
    """The integers of `seen` against the arithmetic of `layout`, of any tiles."""
    rng = random.Random(seed)
    reach, classes = rng.randint(0, 3), rng.randint(1, 3)
    length = rng.randint((2 * reach + 1) * classes, 40)
    axis = TileAxis(length, rng.randint(1, 9), reach, True, classes)
    layout, (tile, place) = axis.layout(torch.device("cpu")), axis.home(torch.device("cpu"))
    for token in range(length):
        assert layout.queries[tile[token], place[token]] == token
        seen = layout.visible[tile[token], place[token]]
        assert layout.keys[tile[token]][seen].tolist() == list(axis.seen(token))
    assert sum(map(len, axis.kinds())) == axis.n


def test_large_maps_have_few_masks():
    rows, cols = TileAxis(500, 4, 3, True), TileAxis(700, 8, 3, True)
    assert len(list(Tiles(rows, cols).kinds())) <= 16


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 48), (33, 41), (34, 38), (35, 47), (1, 2)])
def test_two_convolutions_pad_with_zeros(size):
    """The stem of NAT at sizes that 4 does not divide: no pad of the image is a map's bias."""
    stem = tiny.create("swin", "stem=two_convs").stem
    x = images(2, 3, *size)
    wanted = stem.norm(stem.conv2(stem.conv(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert error(stem(x), wanted) < 1e-5


def test_what_weights_do_not_tell_is_asked_for():
    """NAT and DiNAT have equal names and sizes, and other dilations."""
    with torch.device("meta"):
        model = backbones.create("dinat_mini")
    theirs = export(model, "nat")
    with pytest.raises(WeightsError, match=r"the sizes of nat_mini and dinat_mini; give --spec"):
        infer(theirs, "nat")
    assert infer(theirs, "nat", like=model.spec).stages == model.spec.stages
    with torch.device("meta"):
        theirs = export(backbones.create("dinat_large"), "nat")
    with pytest.raises(WeightsError, match="dinat_large and dinat_large_384"):
        infer(theirs, "nat")
    other = backbones.create("nat_mini/norm=res_post", num_classes=0)
    with pytest.raises(WeightsError, match="with the sizes of nat_mini and dinat_mini"):
        export(other, "nat")
