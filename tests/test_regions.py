"""analysis.regions: every array of a picture against its definition, every command as typed."""

import csv
import io
import itertools
import json
import math
import sys

import naive
import numpy as np
import pytest
import tiny
import torch

import attention
import backbones
from analysis import regions
from analysis.models import footprint, maps, reach
from analysis.pictures import draw_maps, figure_style, studies, views
from attention import SpecError, make_config, names, parse
from backbones.specs.stage import read_pattern

SMALL = "swin_t/1.dim=8/1.heads=2/2.dim=8/2.heads=2/3.dim=8/3.heads=2/3.depth=2/4.dim=8/4.heads=2"
SMALL += "/img_size=64"


# -- masks -----------------------------------------------------------------------------------


def runs(n, size):
    """For each place after a cyclic shift by size // 2: where it was, and its run there."""
    total = -(-n // size) * size
    shift = size // 2 if total > size else 0
    origin = [(p + shift) % total for p in range(total)]
    return origin, [math.floor((i - shift) / size) for i in origin]


@pytest.mark.parametrize(
    ("mixer", "grid"),
    [
        ("window:size=7", (14, 14)),
        ("window:size=4", (12, 8)),
        ("window:size=3x4", (10, 7)),
        ("window:size=7", (7, 15)),
        ("cosine:size=5,mask_value=-100", (11, 10)),
    ],
)
def test_masks_are_the_definition_cell_for_cell(mixer, grid):
    """Two tokens of a window attend iff floor((i - s) / M) agrees on both axes."""
    gh, gw = parse(mixer).size
    (found,) = maps.masks(parse(mixer), grid, index=1)
    (origin_r, run_r), (origin_c, run_c) = runs(grid[0], gh), runs(grid[1], gw)
    high, wide = len(run_r) // gh, len(run_c) // gw
    for n, hidden in enumerate(found.masked):
        top, left = n // wide * gh, n % wide * gw
        places = list(itertools.product(range(top, top + gh), range(left, left + gw)))
        for a, (i, j) in enumerate(places):
            for b, (k, m) in enumerate(places):
                assert bool(hidden[a, b]) == ((run_r[i], run_c[j]) != (run_r[k], run_c[m]))
    assert len(found.masked) == high * wide
    cells = list(itertools.product(range(len(run_r)), range(len(run_c))))
    named = {(run_r[i], run_c[j]): set() for i, j in cells}
    for i, j in cells:
        named[run_r[i], run_c[j]].add(int(found.ids[i, j]))
        came = (origin_r[i] < i) + 2 * (origin_c[j] < j)
        assert found.wrapped_from[i, j] == came
        assert bool(found.pad[i, j]) == (origin_r[i] >= grid[0] or origin_c[j] >= grid[1])
    numbers = [n for found_numbers in named.values() for n in found_numbers]
    assert all(len(v) == 1 for v in named.values()) and len(set(numbers)) == len(numbers)


def test_hidden_pads_come_last_and_alone():
    (found,) = maps.masks(parse("window:size=4,mask_padding=true"), (6, 9), index=1)
    real = set(found.ids[~found.pad].tolist())
    assert real == set(range(len(real)))
    assert "4 sets" in studies.masks("window:size=7", (7, 21)).summary  # rows are not shifted


def test_every_softmax_mixer_has_a_mask():
    for name in names():
        if name == "token_mlp" or name in naive.ELSEWHERE:
            with pytest.raises(SpecError, match=f"{name}: no softmax inside groups"):
                maps.masks(make_config(name), (9, 9))
            continue
        for found in maps.masks(make_config(name), (9, 10)):
            assert found.masked.any() == (name in ("window", "cosine"))


def test_messengers_change_no_mask():
    (found,) = maps.masks(parse("messenger:size=3"), (7, 8))
    assert not found.masked.any() and len(found.masked) == 9


# -- footprints ------------------------------------------------------------------------------


def chain(name, depth):
    """Blocks of one mixer with residuals, in double precision, every parameter drawn."""
    configs = [(parse(name), index) for index in range(depth)]
    mixers = [attention.build(c, dim=8, heads=2, index=i) for c, i in configs]
    return [tiny.randomise(mixer, seed=i).double().eval() for i, mixer in enumerate(mixers)]


def run_chain(mixers, x):
    """Their residuals on a map (b, h, w, c), with messengers where they have some."""
    (h, w), config = x.shape[1:3], mixers[0].config
    if not hasattr(config, "windows"):
        for mixer in mixers:
            x = x + mixer(x)
        return x
    tokens = torch.randn(1, math.prod(config.windows(h, w)), 8, dtype=torch.float64)
    for mixer in mixers:
        of_map, of_tokens = mixer(x, tokens)
        x, tokens = x + of_map, mixer.exchange(tokens + of_tokens, h, w)
    return x


MIXERS = [
    "window:size=3", "window:size=2x3,mask_padding=true", "cosine:size=3", "shuffle:size=3",
    "shuffle:size=2,interval=2,mask_padding=true",
    "axial", "axial:order=sequential", "cross:size=2", "pale:size=2", "pale:size=3,position=lepe",
    "token_mlp:size=3", "full", "window:size=3,shift=false", "sra:ratio=2",
    "sra:ratio=4x3,remainder=pad", "sra:pool=2", "axial_deeplab:span=3", "axial_deeplab",
    "neighbourhood:kernel=3", "neighbourhood:kernel=3,dilation=2", "halo:block=3,radius=1",
    "messenger:size=2,region=2", "messenger:size=3x2,region=1",
]  # fmt: skip


@pytest.mark.parametrize("blocks", [1, 2])  # a messenger that has read goes to the second
@pytest.mark.parametrize("name", MIXERS)
def test_footprint_is_the_support_of_the_gradient(name, blocks):
    mixers = chain(name, blocks)
    for grid, query in (((7, 8), (1, 2)), ((6, 9), (5, 8)), ((9, 5), (4, 2))):
        x = torch.randn(1, *grid, 8, dtype=torch.float64, requires_grad=True)
        out = run_chain(mixers, x)[0, query[0], query[1]]
        (gradient,) = torch.autograd.grad(out @ torch.randn_like(out), x)
        steps = footprint.pattern_steps(read_pattern(name), blocks, grid)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, footprint.footprint(steps, query))


def test_mixers_of_the_footprint_tests_are_all_there_are():
    assert {name.partition(":")[0] for name in MIXERS} >= set(names()) - {"pool", *naive.SAMPLED}


def test_shares_are_of_what_is_seen_by_then():
    seen = torch.tensor([[0, 1], [2, 4]])
    assert studies._shares(seen, (1, 2, 4), " -> ") == "25% -> 50% -> 75%"


@pytest.mark.parametrize("cpe", [False, True])
def test_a_block_reads_its_own_token(cpe):
    """By the residual, whatever its mixer reads; a convolution before it reads the eight around."""

    class Elsewhere:
        config = "elsewhere"

        def region(self, h, w, query):
            return torch.zeros(h, w, dtype=torch.bool)

    seen = footprint.mixer_step(Elsewhere(), (5, 6), cpe=cpe).reads((2, 3))
    wanted = torch.zeros(5, 6, dtype=torch.bool)
    wanted[slice(1, 4) if cpe else 2, slice(2, 5) if cpe else 3] = True
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize(("name", "of_map"), [("full", 56), ("sra:ratio=3", 36), ("axial", 0)])
def test_class_tokens_and_the_map_read_each_other(name, of_map):
    """A class token reads what keys are made of, and itself alone where the mixer takes none."""
    mixer = attention.create(name, dim=8, heads=2)
    step = footprint.mixer_step(mixer, (7, 8), tokens=3)
    taken = mixer.config.takes_tokens
    assert step.read((6, 7))[56:].tolist() == [taken] * 3
    assert step.read(1)[56:].tolist() == [taken, True, taken]
    assert int(step.read(1)[:56].sum()) == of_map and len(step.nodes) == 59


@pytest.mark.parametrize("side", [0, 3, 5])
def test_a_local_convolution_reads_around_what_its_mixer_reads(side):
    """By the gradient of a block, windows of 2x2 and a kernel on top of them."""
    spec = backbones.parse(tiny.notation("swin", "1=window:size=2", f"local={side}"))
    block = tiny.randomise(backbones.create(spec)).double().stages[0].blocks[0]
    steps = footprint.block_steps(block.mixer, spec, (8, 8))
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(block(x)[0, 3, 2].sum(), x)
    seen = footprint.footprint(steps, (3, 2))
    assert torch.equal(grad[0].abs().amax(-1) > 0, seen)
    assert int(seen.sum()) == {0: 4, 3: 16, 5: 36}[side]
    assert [step.block for step in steps if step.block] == [1]  # the last ends the block


def smooth(model):
    """The model with GELU for ReLU6, whose gradient is 0 where it does not depend on its input."""
    for part in model.modules():
        for name, child in part.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(part, name, torch.nn.GELU())
    return model


@pytest.mark.parametrize("edit", [
    "stem=patch", "stem=overlap", "stem=overlap_same", "downsample=merge", "downsample=conv_norm",
    "downsample=norm_conv", "downsample=patch_norm", "stem=conv_relu6", "stem=cross_scale",
    "downsample=cross_scale",
    "stem=conv_bn", "stem=conv_bn_even", "downsample=mbconv", "downsample=mbconv_even",
])  # fmt: skip
def test_what_a_convolution_reads_is_what_its_gradient_reaches(edit):
    """Of every token, at the edges too: odd maps are padded at the bottom and right."""
    p = 4 if edit.endswith(("conv_relu6", "m=cross_scale", "mbconv", "mbconv_even")) else 3
    model = smooth(tiny.create("swin", edit, f"patch_size={p}"))
    stem = edit.startswith("stem")
    layer, channels, stride = (model.stem, 3, p) if stem else (model.stages[1].downsample, 8, 2)
    before = (7, 8) if stem else (5, 6)
    after = tuple(-(-side // stride) for side in before)
    step = footprint.conv_step(layer, before, after, 0)
    x = torch.randn(1, channels, *before, requires_grad=True)
    weights = torch.randn(layer(x).shape[1])
    for i, j in itertools.product(*map(range, after)):
        (grad,) = torch.autograd.grad(layer(x)[0, :, i, j] @ weights, x)
        assert torch.equal(grad[0].abs().amax(0) > 0, step.reads((i, j))), (i, j)


def test_parameters_are_drawn_from_their_own_seed():
    """Whatever was drawn before: what is compared has the same weights in any process."""
    hashes = []
    for global_seed, own in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(global_seed)
        model = backbones.create(SMALL)
        torch.manual_seed(global_seed)
        hashes.append(tiny.state_hash(tiny.randomise(model, own)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_first_seen_nests():
    steps = footprint.pattern_steps(read_pattern("window:size=3+axial"), 4, (9, 9))
    seen = footprint.first_seen(steps, (4, 4), [4, 1, 2])
    assert seen.unique().tolist() == [1, 2, 4] and (seen == 1).sum() == 9
    steps = footprint.pattern_steps(read_pattern("window:size=3"), 4, (12, 12))
    assert 0 in footprint.first_seen(steps, (0, 0), [1, 2])


@pytest.mark.parametrize(
    "family",
    [
        "swin", "cswin", "pale", "hybrid", "shuffletransformer", "crossformer", "maxvit", "pvt",
        "twins", "msg", "vit", "pvt1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("position", ["none", "cpe", "cpe_once"])
def test_a_backbones_footprint_is_its_gradient(family, position):
    """From the pixels through stem, stages and downsampling; and erf is 0 outside."""
    small = ["1=window:size=3"] if family == "swin" else []
    spec = backbones.parse(tiny.notation(family, *small, f"position={position}", "img_size=48x40"))
    model = smooth(tiny.randomise(backbones.create(spec))).double().eval()
    steps = footprint.backbone_steps(spec)
    for stage, (h, w) in enumerate(spec.grids((48, 40)), start=1):
        x = torch.randn(1, 3, 48, 40, dtype=torch.float64)
        own = [step for step in steps if step.stage <= stage]
        seen = footprint.footprint(own, (h // 2, w // 2))

        def features(x):
            return [level.permute(0, 2, 3, 1) for level in model.features(x)]

        assert torch.equal(maps.field(features, x, stage, family) > 0, seen)
        if stage == 1 and family == "swin" and position == "none":
            assert not seen.all()


BESIDE = {  # what passes through the tokens beside the map, or does not
    "msg": "msg_t/img_size=96x80/1.depth=2/1=messenger:size=3,region=2/2.depth=1/"
    "2=messenger:size=3,region=2/3.depth=1/3=messenger:size=3,region=1/stages=3",
    "one block": "msg_t/img_size=96x80/1.depth=1/1=messenger:size=3,region=2/2.depth=1/"
    "2=messenger:size=3,region=1/stages=2",
    "ends": "msg_t/img_size=64/1.depth=2/1=messenger:size=3,region=2/2.depth=1/"
    "2=window:size=2/stages=2/pool=mean",
    "local": "msg_t/img_size=64/1.depth=3/1=messenger:size=3,region=2+window:size=2/2.depth=1/"
    "2=messenger:size=3,region=1/local=3/stages=2/downsample=norm_conv",
    "bottlenecks": "msg_t/img_size=64/patch_size=8/1.depth=2/1=messenger:size=2,region=2/2.depth=1/"
    "2=messenger:size=2,region=1/stages=2/downsample=merge",
    "class tokens": "vit_tiny_patch16_224/patch_size=8/img_size=48x40/1.depth=2/1.tokens=3",
    "windows first": "vit_tiny_patch16_224/patch_size=8/img_size=48x40/1.depth=3/1.tokens=3/"
    "1=window:size=2+full",
    "late": "swin_t/img_size=64/stages=2/pool=token/1.depth=1/1=window:size=2/2.depth=3/2.tokens=2/"
    "2=window:size=2+sra:ratio=3+window:size=2",
    "two stages": "swin_t/img_size=48x40/stages=2/1.depth=2/1.tokens=1/1=full+window:size=2/"
    "2.depth=2/2.tokens=2/2=sra:ratio=4/pool=token",
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_what_the_tokens_beside_a_map_carry_is_in_the_footprint(case):
    """Of the corners and the centre of every stage's map, and of the logits."""
    stages = range(1, len(backbones.parse(BESIDE[case]).stages) + 1)
    narrow = "".join(f"/{i}.dim={8 * i}/{i}.heads=2" for i in stages)
    spec = backbones.parse(f"{BESIDE[case]}{narrow}/num_classes=5")
    model = tiny.randomise(backbones.create(spec)).double().eval()
    steps = footprint.backbone_steps(spec)
    x = torch.randn(1, 3, *spec.img_size, dtype=torch.float64, requires_grad=True)

    def reached(out):
        (grad,) = torch.autograd.grad(
            out @ torch.randn_like(out), x, retain_graph=True, materialize_grads=True
        )
        return grad[0].abs().amax(0) > 0

    for stage, level in enumerate(model.features(x), start=1):
        own = [step for step in steps if step.stage <= stage]
        h, w = level.shape[2:]
        for i, j in ((0, 0), (h // 2, w // 2), (h - 1, w - 1)):
            assert torch.equal(reached(level[0, :, i, j]), footprint.footprint(own, (i, j)))
    seen = footprint.footprint([*steps, footprint.head_step(spec)], (0, 0))
    assert torch.equal(reached(model(x)[0]), seen)


# -- reach -----------------------------------------------------------------------------------


def brute(stage, grid):
    """Blocks until the product of the definition's pair matrices has no zero; None after 20."""
    tokens = grid[0] * grid[1]
    seen, tally = torch.eye(tokens, dtype=torch.float64), {}
    for n in range(20):
        config = stage.mixers[n % len(stage.mixers)]
        index = tally.get(config, 0)
        tally[config] = index + 1
        mixer = attention.build(config, dim=8, heads=2, index=index)
        seen = (naive.pairs(mixer, *grid).double() @ seen).clamp(max=1)
        if seen.all():
            return n + 1
    return None


@pytest.mark.parametrize(
    "pattern",
    ["window:size=3", "window:size=3,shift=false", "token_mlp:size=3", "shuffle:size=3", "axial",
     "cross:size=2", "pale:size=2", "full", "window:size=3+axial", "sra:ratio=2",
     "window:size=3+sra:ratio=4"],
)  # fmt: skip
@pytest.mark.parametrize("grid", [(9, 9), (7, 10)])
def test_blocks_to_see_all_is_brute_force(pattern, grid):
    stage = backbones.StageSpec(dim=8, depth=2, heads=2, mixers=pattern)
    assert reach.blocks_to_see_all(stage, grid) == brute(stage, grid)


@pytest.mark.parametrize(
    ("pattern", "grid", "blocks"),
    [("messenger:size=3,region=2", (5, 6), 2), ("messenger:size=3,region=1", (5, 6), None),
     ("messenger:size=2,region=2+window:size=2", (8, 6), 7), ("messenger:size=2,region=2", (4, 6),
     None), ("messenger:size=6,region=2", (5, 6), 1)],
)  # fmt: skip
def test_messengers_bring_the_rest_of_their_map(pattern, grid, blocks):
    """A block reads it, the next window hears of it."""
    stage = backbones.StageSpec(dim=8, depth=2, heads=2, mixers=pattern)
    assert reach.blocks_to_see_all(stage, grid) == blocks
    for n in range(1, 9):
        steps = footprint.pattern_steps(read_pattern(pattern), n, grid)
        places = itertools.product(*map(range, grid))
        seen = all(footprint.footprint(steps, place).all() for place in places)
        assert seen == (blocks is not None and n >= blocks)


@pytest.mark.parametrize(
    "text",
    [SMALL + "/1=window:size=4/2=cross:size=1", tiny.notation("msg"), tiny.notation("vit")],
)
def test_reach_is_the_footprint_of_every_token(text):
    spec = backbones.parse(text)
    rows = reach.reach(spec)
    steps = footprint.backbone_steps(spec)[1:]
    after = 0
    for row, (h, w) in zip(rows, spec.grids(spec.img_size), strict=True):
        own = [step for step in steps if step.stage <= row["stage"]]
        share = [
            footprint.footprint(own, (i, j)).double().mean() for i in range(h) for j in range(w)
        ]
        assert row["image_seen_least_%"] == pytest.approx(100 * min(share))
        assert row["image_seen_mean_%"] == pytest.approx(100 * sum(share) / len(share))
        after += row["blocks"]
        assert (row["image_seen_after"] is None) == (min(share) < 1)
        assert row["image_seen_after"] is None or row["image_seen_after"] <= after


# -- attention -------------------------------------------------------------------------------


def dense(mixer, x, grid):
    """(heads, h w, h w + 1): probabilities from the definition, pads summed in the last column.

    The definition multiplies its softmax with the values: with one value per key, the identity,
    what comes out is the softmax.
    """
    out = []
    p = dict(mixer.named_parameters()) | dict(mixer.named_buffers())
    ((*branches,),) = naive.layers(mixer, *grid)
    for number, branch in enumerate(branches):
        if naive.kind_of(mixer) == "pale":
            map_ = branch.pad(x).unflatten(1, (branch.rows.total, branch.cols.total))
            half = slice(number * mixer.dim // 2, (number + 1) * mixer.dim // 2)
            q, k = (naive._separable(p, n, map_, False)[..., half] for n in "qk")
        else:
            q, k, _ = naive._qkv(p, "", branch.pad(x))
        size, heads = q.shape[1], mixer.heads // branch.share
        d = mixer.dim // mixer.heads
        values = torch.eye(size, dtype=x.dtype).repeat(1, heads)[None]
        real, parts = branch.real(), []
        for head in range(heads):
            c = slice(head * d, (head + 1) * d)
            one = _Alone(p, branch, mixer, head)
            parts.append(one.softmax(q[..., c], k[..., c], values[..., :size])[0][real])
        given = torch.stack(parts)
        out.append(torch.cat([given[..., real], given[..., ~real].sum(-1, keepdim=True)], -1))
    return torch.cat(out)


class _Alone:
    """One head of the definition, so that its values may be wider than its queries."""

    def __init__(self, p, branch, mixer, head):
        self.p, self.branch, self.mixer, self.head = p, branch, mixer, head

    def softmax(self, q, k, v):
        branch, config = self.branch, self.mixer.config
        allowed = naive.may_attend(branch, config)
        if config.scores == "cosine":
            scale = self.p[branch.prefix + "logit_scale"][self.head].clamp(max=math.log(100)).exp()
            q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (q, k))
        else:
            scale = q.shape[-1] ** -0.5
        scores = q @ k.mT * scale + naive._position(self.p, branch, config, self.head)
        return scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize(
    ("name", "index"),
    [("window:size=3", 0), ("window:size=3", 1), ("window:size=3,mask_padding=true", 1),
     ("cosine:size=3", 1), ("shuffle:size=3", 1), ("pale:size=2", 0), ("pale:size=3", 0)],
)  # fmt: skip
def test_attention_put_back_is_the_dense_softmax(name, index):
    grid = (7, 8)
    mixer = attention.build(parse(name), dim=8, heads=2, index=index)
    mixer = tiny.randomise(mixer).double().eval()
    x = torch.randn(1, *grid, 8, dtype=torch.float64)
    with torch.no_grad(), maps.record_attention(mixer) as calls:
        mixer(x)
    wanted = dense(mixer, x, grid).detach()
    for i, j in itertools.product(range(grid[0]), range(grid[1])):
        parts = [maps.attention_of(call, (i, j)) for call in calls]
        given = torch.cat([part[0].flatten(1) for part in parts])
        pads = torch.cat([part[1] for part in parts])
        assert not any(part[2].any() for part in parts)  # no tokens beside the map
        assert torch.allclose(given.sum(-1) + pads, torch.ones(2, dtype=torch.float64))
        found = torch.cat([given, pads[:, None]], -1)
        assert tiny.error(found, wanted[:, i * grid[1] + j]) < 1e-12


@pytest.mark.parametrize("name", ["full", "messenger:size=3,region=1,position=none"])
def test_attention_has_its_share_for_tokens_beside_the_map(name):
    """Two of the whole map, or one of the window, which has pads, by a softmax of its own."""
    mixer = tiny.randomise(attention.create(name, dim=8, heads=2)).double().eval()
    gh, gw = getattr(mixer.config, "size", (7, 8))
    x = torch.randn(1, 7, 8, 8, dtype=torch.float64)
    tokens = torch.randn(1, 2 if name == "full" else 9, 8, dtype=torch.float64)
    before = mixer(x, tokens)
    with torch.no_grad(), maps.record_attention(mixer) as calls:
        mixer(x, tokens)
    given, pads, beside = maps.attention_of(calls[0], (6, 7))  # the last of the last window
    own = tokens[0] if name == "full" else tokens[0, -1:]
    cut = x[0, 6 // gh * gh :, 7 // gw * gw :].flatten(0, 1)
    q, k, _ = mixer.project(torch.cat([own, cut, x.new_zeros(gh * gw - len(cut), 8)]))
    at = len(own) + len(cut)
    weights = torch.einsum("md,nmd->mn", q[at - 1].view(2, 4), k.view(-1, 2, 4)).div(2).softmax(-1)
    assert tiny.error(beside, weights[:, : len(own)].sum(-1)) < 1e-12
    assert tiny.error(pads, weights[:, at:].sum(-1)) < 1e-12
    assert tiny.error(given[:, 6, 7], weights[:, at - 1]) < 1e-12
    assert tiny.error(given.sum((1, 2)), weights[:, len(own) : at].sum(-1)) < 1e-12
    assert torch.equal(mixer(x, tokens)[0], before[0]) and len(calls) == 1  # it has stopped


def test_listening_leaves_the_model_alone():
    model = tiny.create("swin")
    x = tiny.images(1, 3, 64, 64)
    before = model(x)
    with maps.record_attention(model) as calls:
        assert torch.equal(model(x), before)
    assert len(calls) == 8
    model(x)
    assert len(calls) == 8


# -- biases and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["window:size=3x4", "cosine:size=3", "shuffle:size=3"])
def test_bias_is_the_definition(name):
    mixer = tiny.randomise(attention.create(name, dim=8, heads=2)).double()
    with torch.no_grad(), maps.record_attention(mixer) as calls:
        mixer(torch.zeros(1, 9, 9, 8, dtype=torch.float64))
    table = maps.bias_of(calls[0])
    ((branch,),) = naive.layers(mixer, 9, 9)
    p, (dr, dc) = dict(mixer.named_parameters()), branch.distance()
    gh, gw = mixer.config.size
    together = branch.same("piece")
    for head in range(2):
        wanted = naive._position(p, branch, mixer.config, head)
        found = table[head][(dr + gh - 1).clamp(0, 2 * gh - 2), (dc + gw - 1).clamp(0, 2 * gw - 2)]
        assert torch.allclose(found[together], wanted[together])


def test_area_ratios():
    field = torch.tensor([[5.0, 3.0], [2.0, 0.0]])
    assert views.area_ratios(field, (0.2, 0.5, 0.6, 0.99, 1.0)) == [0.25, 0.25, 0.5, 0.75, 0.75]


def test_norms_that_start_at_zero_are_woken_for_the_gradient():
    model = backbones.create(tiny.notation("swinv2"))
    assert maps.wake_norms(model) == 16 and maps.wake_norms(model) == 0
    assert maps.wake_norms(backbones.create(tiny.notation("swin"))) == 0


def test_every_library_shows_its_maps():
    import torchvision

    model = torchvision.models.get_model("swin_t", weights=None).eval()
    with torch.no_grad():
        levels = maps.maps_of(model, torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in levels] == [
        (16, 24, 96), (8, 12, 192), (4, 6, 384), (2, 3, 768)
    ]  # fmt: skip


def test_tokens_in_a_row_are_a_map_too(tmp_path, capsys):
    """A ViT: its class token goes, and its blocks see everything."""
    out = tmp_path / "erf.png"
    argv = ["erf", "--backbone", "timm:vit_tiny_patch16_224", "--seeds", "1", "--out", str(out)]
    assert regions.main(argv) == 0
    assert "100% of the pixels are seen" in capsys.readouterr().out


# -- commands --------------------------------------------------------------------------------

COMMANDS = {
    "footprint": ["--mixers", "window:size=3", "pale:size=2+axial", "--grid", "9x8"],
    "footprint-stages": ["--backbone", SMALL, "--blocks", "1"],
    "masks": ["--mixer", "window:size=4,mask_padding=true", "--grid", "10x9"],
    "masks-branch": ["--mixer", "cross:size=2", "--grid", "9", "--branch", "2"],
    "masks-shuffled": ["--mixer", "shuffle:size=3", "--grid", "8"],
    "erf": ["--backbone", SMALL, SMALL + "/1=axial", "--seeds", "2", "--stage", "1"],
    "bias": ["--backbone", SMALL + "/2=cosine:size=4", "--stage", "2"],
    "bias-many": ["--backbone", SMALL.replace("1.dim=8/1.heads=2", "1.dim=24/1.heads=12")],
    "attention": ["--backbone", SMALL + "/2=pale:size=2", "--stage", "2", "--query", "0,7"],
    "attention-wide": ["--backbone", SMALL, "--img-size", "50x70", "--block", "2"],
    "attention-beside": ["--backbone", tiny.notation("vit"), "--query", "0,7"],
    "footprint-beside": ["--backbone", tiny.notation("msg"), tiny.notation("vit")],
}


@pytest.mark.parametrize("ending", ["png", "svg"])
@pytest.mark.parametrize("case", COMMANDS)
def test_commands_write_pictures(case, ending, tmp_path, capsys):
    out = tmp_path / f"picture.{ending}"
    assert regions.main([case.partition("-")[0], *COMMANDS[case], "--out", str(out)]) == 0
    text, err = capsys.readouterr()
    assert text.startswith(f"wrote {out}: ") and len(text.splitlines()) == 1 and err == ""
    if ending == "png":
        from matplotlib.image import imread

        pixels = imread(out)
        assert min(pixels.shape[:2]) > 200 and len(np.unique(pixels)) > 10
    else:
        import xml.etree.ElementTree as ElementTree

        assert ElementTree.parse(out).getroot().tag.endswith("svg")
    assert list(tmp_path.iterdir()) == [out]


WORDS = {  # lines of the text beside the picture
    "footprint": [
        "What one token can see on a 9x8 map; below: share after 1 -> 2 -> 4 blocks",
        "seen by (1, 2): window:size=3 12% -> 50% -> 100%; pale:size=2+axial 92% -> 100% -> 100%",
        "Panels: window:size=3; pale:size=2+axial.",
        "Legend: the query; seen after 1 block; seen after 2 blocks; seen after 4 blocks; not "
        "seen.",
    ],
    "masks": [
        "3. Each window's mask: row = query, column = key, the 16 tokens of a window row by row",
        "Legend: stays where it is; came round from the top; came round from the left; from both; "
        "pad; may attend; masked.",
    ],
    "erf": [
        "What the centre unit of stage 1 reads: mean of 2 gradients, random weights",
        f"Panels: {SMALL}; {SMALL}/1=axial.", "Colours: gradient, 1 = strongest pixel.",
    ],
    "bias": [
        "Panels: head 1; head 2.", "Colours: added to the score.", "Legend: head 1; head 2.",
        "Curves. Across: columns from key to query, in the same row. Up: added to the score.",
        "Panels. Across: columns from key to query. Up: rows from key to query.",
    ],
    "attention": [
        "Colours: attention, 1 = the head's strongest token.",
        "Legend: the query; gets no attention: outside the group.",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_a_picture_in_words(case, tmp_path, capsys):
    """The summary that is printed, and the words that stand on the picture, each once."""
    out = tmp_path / "picture.png"
    assert regions.main([case, *COMMANDS[case], "--out", str(out), "--describe"]) == 0
    lines = (tmp_path / "picture.png.txt").read_text().rstrip("\n").split("\n")
    assert lines.count(capsys.readouterr().out.strip().removeprefix(f"wrote {out}: ")) == 1
    assert [line for line in WORDS[case] if line not in lines] == []
    assert len(set(lines)) == len(lines) and len([*tmp_path.iterdir()]) == 2


def test_words_on_a_picture_are_those_that_were_drawn():
    """Of escapes and hidden panels; a heading in one piece, however narrow the picture."""
    picture, axes = draw_maps.grid_of(2, 4, 2.3)
    draw_maps.title(picture, f"a $heading$ of {'a_long_name' * 20}")
    axes[0].set_title(figure_style.words("costs $1"))
    axes[1].set_visible(False)
    assert figure_style.in_words(picture, "A sentence.").split("\n") == [
        f"a $heading$ of {'a_long_name' * 20}", "A sentence.", "Panels: costs $1.",
    ]  # fmt: skip


def test_the_same_request_writes_the_same_bytes(tmp_path):
    one, two = (tmp_path / name for name in ("1.svg", "2.svg"))
    for out in (one, two):
        regions.main(["masks", "--grid", "8", "--mixer", "window:size=4", "--out", str(out)])
    assert one.read_bytes() == two.read_bytes()


def test_reach_is_a_table_csv_or_json(capsys):
    rows = {}
    for style in ("table", "csv", "json"):
        assert regions.main(["reach", "--backbone", SMALL, "--format", style]) == 0
        rows[style] = capsys.readouterr().out
    data = json.loads(rows["json"])["rows"]
    assert [row["stage"] for row in data] == [1, 2, 3, 4]
    read = list(csv.DictReader(io.StringIO(rows["csv"])))
    assert [r["blocks_to_see_its_map"] for r in read] == [
        str(row["blocks_to_see_its_map"]) for row in data
    ]
    assert "blocks_to_see_its_map" in rows["table"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["footprint", "--mixers", "windw"], "did you mean 'window'"),
        (["footprint", "--mixers", "full", "--backbone", "swin_t"], "choose one"),
        (["footprint", "--mixers", "full", "--grid", "5", "--query", "5,0"], "outside the 5x5 map"),
        (["reach", "--backbone", "swin_t", "--img-size", "1024"], "choose a smaller --img-size"),
        (["masks", "--mixer", "token_mlp"], "no softmax inside groups"),
        (["masks", "--branch", "2"], "--branch 2"),
        (["masks", "--out", "picture.bmp"], "expected a name ending in .png"),
        (["masks", "--out", "no/such/folder.png"], "No such file or directory"),
        (["erf", "--backbone", SMALL, "--stage", "9"], "--stage 9: it shows 4 maps"),
        (["erf", "--backbone", SMALL, "--weights", "none.safetensors"], "--weights"),
        (["erf", "--backbone", SMALL, SMALL, "--weights", "x.safetensors"], "one --backbone"),
        (["erf", "--backbone", "timm:no_such_model"], "timm has no model"),
        (["bias", "--backbone", SMALL + "/1=full"], "no bias"),
        (["bias", "--backbone", SMALL, "--block", "7"], "--block 7: stage 1 has blocks 1 to 2"),
        (["attention", "--backbone", SMALL, "--query", "99,0"], "outside the 16x16 map"),
        (["attention", "--backbone", SMALL, "--image", "none.png"], "--image none.png"),
        (["attention", "--backbone", SMALL + "/1=token_mlp"], "computes no softmax"),
        (["bias", "--backbone", tiny.notation("vit")], "choose position=bias"),
        (["attention", "--backbone", tiny.notation("pvt1")], "a mixer that does, such as window"),
    ],
)
def test_a_bad_request_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as error:
        regions.main(argv)
    assert words in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("query", ["5", "a,b", "-1,2", "1,2,3"])
def test_a_query_is_row_comma_column(query, capsys):
    with pytest.raises(SystemExit) as stopped:
        regions.main(["footprint", f"--query={query}"])
    assert stopped.value.code == 2 and "row,column" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["matplotlib", "matplotlib.figure", "skimage"])
def test_without_the_extra_it_says_what_to_install(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"pip install transom\[report\]"):
        regions.main(["attention", "--backbone", SMALL])


def test_functions_return_arrays_and_a_figure():
    study = studies.footprints(["window:size=3", "full"], (6, 6), (0, 0), [1])
    assert study.arrays["full"].eq(1).all() and study.arrays["window:size=3"].sum() == 9
    assert study.figure.axes
    study = views.attention(SMALL, stage=1, query=(3, 3))
    assert all(part.shape == (16, 16) for part in study.arrays.values())
    with pytest.raises(SpecError):
        footprint.footprint(footprint.backbone_steps(backbones.parse(SMALL)), (9, 9))


def test_a_plug_in_without_a_region_is_named():
    steps = footprint.pattern_steps(read_pattern("full"), 1, (3, 3))
    mixer = attention.TokenMixer(make_config("full"), dim=8, heads=2)
    assert steps[0].reads((0, 0)).all()
    with pytest.raises(SpecError, match="states no region"):
        footprint.mixer_step(mixer, (3, 3)).reads((0, 0))
