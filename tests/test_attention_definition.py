"""Every mixer against its definition (naive.py): regions, values, gradients and costs.

The four check functions are run over the whole registry, and then on mixers with one planted
mistake each: a check that lets a planted mistake pass would be no check.
"""

import copy
import dataclasses
import random

import naive
import naive_sra
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from strategies import (
    BUILT_IN,
    OPTIONS,
    SOFTMAX,
    Case,
    cases,
    draw_case,
    fields_of,
    fitting,
    randomise,
)
from torch.utils.flop_counter import FlopCounterMode

import attention
import attention.softmax.position
from attention.geometry.axis import axis
from attention.geometry.groups import Groups
from attention.mixers.cross import CrossMixer
from attention.mixers.pale import PaleMixer
from attention.mixers.shuffle import ShuffleMixer
from attention.mixers.token_mlp import TokenMLPMixer
from attention.mixers.window import WindowMixer
from attention.softmax.branch import Branch


def over_mixers(default, full, **options):
    """Runs a test of one case on every mixer: `default` cases of each, and `full` when slow."""

    def wrap(test):
        def run(name):
            settings(max_examples=default)(given(cases(name, **options))(test))()

        def run_slow(name):
            settings(max_examples=full)(given(cases(name, **options))(test))()

        run.__doc__ = run_slow.__doc__ = test.__doc__
        over = pytest.mark.parametrize("name", BUILT_IN)
        return over(run), pytest.mark.slow(over(run_slow))

    return wrap


# -- the checks ------------------------------------------------------------------------------


def support(mixer, h, w, c, x, channels=slice(None)):
    """(h w, h w) bool: the outputs (rows) whose gradient with respect to a token is not zero.

    The map is repeated h w times and copy n is asked about output n only: one backward pass.
    """
    n = h * w
    x = x.expand(n, h, w, c).clone().requires_grad_()
    y = mixer(x).reshape(n, n, c)[..., channels]
    weights = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    (y.diagonal().mT @ weights).sum().backward()
    return x.grad.reshape(n, n, c).abs().amax(-1) > 0


def check_locality(mixer, case):
    """The support of the gradient is the region, as the definition and the mixer state it.

    With a finite mask_value it is the region and what leaks across the seam of the shift.
    """
    n = case.h * case.w
    found = support(mixer, case.h, case.w, case.dim, case.input())
    leaky, defined = (naive.pairs(mixer, case.h, case.w, leaks) for leaks in (True, False))
    if naive.kind_of(mixer) == "sra" and len(naive_sra.cells(mixer, case.h, case.w)) == 1:
        # one key has all of the attention: a gradient of the query is rounding
        found &= leaky | ~torch.eye(n, dtype=torch.bool)
    assert not (found & ~leaky).any(), f"{int((found & ~leaky).sum())} illegal pairs of {n}^2"
    missing = leaky & ~found
    if naive.kind_of(mixer) in naive.SAMPLED:
        missing.fill_(False)
    assert not missing.any(), f"{int(missing.sum())} missing pairs of {n}^2"
    for token in range(n):
        stated = mixer.region(case.h, case.w, (token // case.w, token % case.w))
        assert stated.dtype == torch.bool and stated.shape == (case.h, case.w)
        assert torch.equal(stated.flatten(), defined[token]), f"region of token {token}"


def check_values(mixer, case, batch=2):
    """Equal to the definition: fp64 to 1e-10, fp32 to 1e-5 and 2e-6 of the largest output."""
    x = case.input(batch)
    with torch.no_grad():
        wanted = naive.forward(mixer, x)
        found = mixer(x)
        assert found.shape == wanted.shape == x.shape
        assert found.isfinite().all()
        error = (found - wanted).abs().max()
        assert error <= 1e-10, f"fp64 differs by {error:.1e}"


def check_single(mixer, case, batch=2):
    """fp32 against the fp64 definition of the same fp32 weights and input."""
    single = copy.deepcopy(mixer).float()
    x = case.input(batch, torch.float32)
    with torch.no_grad():
        wanted = naive.forward(copy.deepcopy(single).double(), x.double())
        error = (single(x).double() - wanted).abs().max()
    # a rounded point lies elsewhere, where the slope of the map adds to the error
    more = 10 if naive.kind_of(mixer) in naive.SAMPLED else 1
    assert error <= more * 1e-5, f"fp32 differs by {error:.1e}"
    largest = wanted.abs().max()
    assert error <= more * 2e-6 * largest, f"fp32: {error:.1e} of {largest:.1e}"


def check_gradients(mixer, case, batch=2):
    """d(random projection)/d(input and every parameter), fp64 to 1e-9."""
    x = case.input(batch).requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    of = {"input": x} | dict(mixer.named_parameters())
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), list(of.values()), materialize_grads=True)
        for y in (mixer(x), naive.forward(mixer, x))
    )
    for name, a, b in zip(of, found, wanted, strict=True):
        assert a.isfinite().all(), f"gradient of {name} is not finite"
        error, limit = (a - b).abs().max(), 1e-9 * max(1.0, float(b.abs().max()))
        assert error <= limit, f"gradient of {name} differs by {error:.1e}"


def check_cost(mixer, case):
    """Exact integers, and whole numbers of the type that adds up without rounding."""
    found = mixer.cost(case.h, case.w)
    assert tuple(found) == naive.cost(mixer, case.h, case.w)
    assert all(type(part) is int for part in found)
    assert found.total == found.projection + found.mixing + found.position
    assert 0 <= found.padding <= found.total


# -- over the registry -----------------------------------------------------------------------


@over_mixers(16, 300, side=9)
def locality(case):
    """A1: no pair too many and no pair too few, by gradient, on any map."""
    check_locality(case.build(), case)


@over_mixers(16, 640)
def values(case):
    """A2: equal to the naive softmax in fp64, also with the cosine scale beyond its clamp."""
    check_values(case.build(hot=case.seed % 2 == 1), case)


# Logits beyond 10 and unit vectors of two numbers are ill-conditioned in any order of operations:
# the naive mixer in fp32 errs as much.  So: the scale of the paper and heads of 8 or 16.
@over_mixers(16, 640, head_dims=(8, 16), qk_scale=None)
def single(case):
    """A2: fp32 within 1e-5, and within 2e-6 of the largest output."""
    check_single(case.build(), case)


@over_mixers(8, 100, side=8)
def gradients(case):
    """A3: the gradient of the input and of every parameter."""
    check_gradients(case.build(hot=case.seed % 2 == 1), case)


@over_mixers(2, 20, side=3, head_dims=(1, 2), mask_value=None)
def gradcheck(case):
    """A3: and the naive mixer's own gradient is right, by finite differences."""
    mixer, x = case.build(), case.input().requires_grad_()
    small = [p for p in mixer.parameters() if p.numel() <= 64]
    assert torch.autograd.gradcheck(lambda x, *_: mixer(x), (x, *small))


@over_mixers(16, 1000, side=24)
def costs(case):
    """The stated multiply-adds are those of the definition, one by one."""
    check_cost(case.build(), case)


@over_mixers(8, 200)
def executed(case):
    """The stated multiply-adds are those that run: torch's counter, 2 a multiply-add, on meta."""
    mixer = case.build(torch.float32).to("meta")
    with FlopCounterMode(display=False) as counter:
        mixer(torch.empty(1, case.h, case.w, case.dim, device="meta"))
    assert counter.get_total_flops() == 2 * mixer.cost(case.h, case.w).total


test_locality, test_locality_slow = locality
test_values, test_values_slow = values
test_single, test_single_slow = single
test_gradients, test_gradients_slow = gradients
test_gradcheck, test_gradcheck_slow = gradcheck
test_cost, test_cost_slow = costs
test_executed_cost, test_executed_cost_slow = executed

MAPS = [(1, 1), (1, 16), (16, 1), (2, 8), (8, 2), (4, 4), (3, 3), (7, 7), (14, 7)]


@pytest.mark.parametrize("h, w", MAPS)
@pytest.mark.parametrize("heads, head_dim", [(1, 2), (2, 1)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_corners(name, heads, head_dim, h, w):
    """A10, A12: every factorisation of 16, a map below, equal to and above the window of 7,
    one head, one channel a head; nothing guesses a side from the number of tokens."""
    if name in naive.ELSEWHERE:  # whose definition is slow
        h, w = min(h, 7), min(w, 8)
    dim, heads = fitting(attention.make_config(name), heads, head_dim)
    for index in (0, 1):
        case = Case(name, dim, heads, index, h, w, seed=h + w)
        mixer = case.build()
        check_values(mixer, case)
        check_gradients(mixer, case)
        check_cost(mixer, case)


def test_corners_locality():
    """A1 on the sizes that failed elsewhere: 16x16 and 9x5 under shifted windows of 7 and 4."""
    for text, h, w in [("window:size=7", 10, 10), ("cosine:size=4x3", 9, 5), ("token_mlp", 9, 8)]:
        case = Case(text, 4, 2, 1, h, w, seed=5)
        check_locality(case.build(), case)


@pytest.mark.parametrize("text", ["cross:size=3x2", "axial", "pale:size=3"])
@pytest.mark.parametrize("h, w", [(6, 9), (5, 7)])
def test_each_branch_has_its_half_of_the_channels(text, h, w):
    """A1: before the output projection, the first half of the channels sees the first branch."""
    case = Case(text, 8, 2, 0, h, w, seed=1)
    mixer = case.build()
    projection = mixer.layers[0].proj if text == "axial" else mixer.proj
    with torch.no_grad():
        projection.weight.copy_(torch.eye(8))
    (branches,) = naive.layers(mixer, h, w)
    for i, branch in enumerate(branches):
        half = slice(4 * i, 4 * i + 4)
        found = support(mixer, h, w, case.dim, case.input(), half)
        assert torch.equal(found, naive.branch_pairs(mixer, branch))


@pytest.mark.parametrize("name", BUILT_IN)
def test_default_and_slow_tiers_reach_every_option(name):
    """Of the cases drawn, enough are shifted, padded, smaller than a window, wide and tall.

    A strategy that never shifts a window would let every property of the shift pass.
    """
    drawn = []

    @settings(max_examples=120)
    @given(cases(name))
    def draw(case):
        drawn.append(case)

    draw()
    seen = [(case, attention.parse(case.text)) for case in drawn]
    assert len(set(drawn)) >= 110
    for field in fields_of(name):
        values = {getattr(config, field) for _, config in seen}
        # legal values only: a mixer without tables never has position=bias
        assert len(values) >= min(3, len(set(OPTIONS[field]))), (field, values)
    assert sum(case.h != case.w for case in drawn) >= 80
    assert any(case.h == case.w == 1 for case in drawn)
    if "size" in fields_of(name):
        assert sum(c.h % f.size[0] > 0 or c.w % f.size[1] > 0 for c, f in seen) >= 60
        assert sum(c.h < f.size[0] or c.w < f.size[1] for c, f in seen) >= 20
    if "shift" in fields_of(name):
        odd = [(c, f) for c, f in seen if f.shift and c.index % 2]
        assert sum(c.h > f.size[0] > 1 or c.w > f.size[1] > 1 for c, f in odd) >= 20


@pytest.mark.parametrize("name", SOFTMAX)
def test_no_row_is_empty(name, monkeypatch):
    """A4, A6: every query has a key, whatever is hidden; logits of a thousand stay finite."""
    real, masks = F.scaled_dot_product_attention, []

    def spy(*args, attn_mask=None, **options):
        masks.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for seed in range(60):
        case = draw_case(random.Random(f"rows {name} {seed}"), name)
        mixer = case.build(torch.float32)
        with torch.no_grad():
            for key, p in mixer.named_parameters():
                if "proj" not in key and "logit_scale" not in key:
                    p.mul_(30)
            assert mixer(case.input(2, torch.float32)).isfinite().all(), case
    shown = [mask for mask in masks if mask is not None]
    for mask in shown:
        allowed = mask if mask.dtype == torch.bool else mask > -float("inf")
        assert allowed.any(-1).all()
        assert not torch.isnan(mask).any()
    assert masks
    assert shown or name in ("axial", "full", "sra")


@pytest.mark.parametrize("name", SOFTMAX)
def test_cosine_scores_have_no_key_bias(name):
    """qkv_bias is one number a channel for queries, keys and values; cosine has none for keys."""

    def biases(scores):
        counts = []
        for qkv_bias in (True, False):
            config = attention.make_config(name, scores=scores, qkv_bias=qkv_bias)
            mixer = attention.create(config, dim=16, heads=2)
            counts.append(sum(p.numel() for p in mixer.parameters()))
        return counts[0] - counts[1]

    assert biases("dot") == 3 * 16
    assert biases("cosine") == 2 * 16


def test_pale_in_training_uses_the_statistics_of_the_padded_map():
    case = Case("pale:size=3", 8, 2, 0, 5, 7, seed=3)
    mixer = case.build().train()
    check_values(mixer, case)


# -- negative controls: one mistake each -----------------------------------------------------


class RollsBeforeItPads(WindowMixer):
    """timm issue 2438: opposite edges attend to each other where the window does not divide."""

    def forward(self, x):
        groups = self.groups(*x.shape[1:3])
        y = self.branch(*self.project(groups.split(groups.pad(groups.roll(x)))), groups)
        return groups.unroll(groups.crop(groups.merge(self.proj(y))))


class PadsInFront(WindowMixer):
    """Top and left instead of bottom and right."""

    def groups(self, h, w):
        return Groups(*(a._replace(before=a.padded - a.length) for a in super().groups(h, w)))


class HidesByAPenalty(WindowMixer):
    """-100 where the shift parts two tokens: nearly the values, but not the region."""

    def forward(self, x):
        config = self.branch.config
        self.branch.config = dataclasses.replace(config, mask_value=-100.0)
        try:
            return super().forward(x)
        finally:
            self.branch.config = config


class ShiftsEveryAxis(WindowMixer):
    """Also an axis that one window covers."""

    def groups(self, h, w):
        cut, (gh, gw) = super().groups(h, w), self.config.size
        return Groups(cut.rows._replace(shift=gh // 2), cut.cols._replace(shift=gw // 2))


class ContiguousShuffle(ShuffleMixer):
    def groups(self, h, w):
        return Groups(axis(h, self.config.size[0]), axis(w, self.config.size[1]))


class StripesExchanged(CrossMixer):
    def branch_groups(self, h, w):
        return super().branch_groups(h, w)[::-1]


class LargerPadFirst(CrossMixer):
    def branch_groups(self, h, w):
        def flip(a):
            return a._replace(before=a.padded - a.length - a.before)

        return tuple(Groups(flip(cut.rows), flip(cut.cols)) for cut in super().branch_groups(h, w))


class PadsBeforeItProjects(CrossMixer):
    """Pad keys that are the bias, not 0."""

    def forward(self, x):
        out = []
        for i, (branch, groups) in enumerate(
            zip(self.branches, self.branch_groups(*x.shape[1:3]), strict=True)
        ):
            q, k, v = (t.chunk(2, dim=-1)[i] for t in self.project(groups.pad(x)))
            q, k, v = (groups.split(t) for t in (q, k, v))
            out.append(groups.reverse(branch(q, k, v, groups)))
        return self.proj(torch.cat(out, dim=-1))


class CropsBeforeItConvolves(PaleMixer):
    """A region that forgets the pads: they too read their neighbours."""

    def region(self, h, w, query):
        rows, cols = self.branch_groups(h, w)
        met = rows.region(query) | cols.region(query)
        return F.max_pool2d(met[None].float(), 3, stride=1, padding=1)[0] > 0


class ShiftSwapped(TokenMLPMixer):
    """[shift, size - shift] zeros instead of [size - shift, shift]: the same for even sizes."""

    def groups(self, h, w):
        def flip(a):
            return a._replace(before=a.padded - a.length - a.before)

        cut = super().groups(h, w)
        return Groups(flip(cut.rows), flip(cut.cols))


class BackwardWrong(WindowMixer):
    """The right output, but the gradient of the input is lost."""

    def forward(self, x):
        y = super().forward(x)
        wrong = super().forward(x.detach() + 0 * x)
        return y.detach() + wrong - wrong.detach()


class FreePads(WindowMixer):
    """The formula of the paper on a map that the window does not divide."""

    def cost(self, h, w):
        gh, gw = self.config.size
        return attention.Cost(4 * h * w * self.dim**2, 2 * gh * gw * h * w * self.dim)


def no_mask(monkeypatch):
    monkeypatch.setattr(Groups, "separated", lambda self, device: None)


def transposed_index(monkeypatch):
    index = attention.softmax.position.relative_index
    monkeypatch.setattr(
        attention.softmax.position, "relative_index",
        lambda gh, gw, device: index(gh, gw, device).mT,
    )  # fmt: skip


def half_scale(monkeypatch):
    init = Branch.__init__

    def slower(self, *args, **options):
        init(self, *args, **options)
        self.scale /= 2**0.5

    monkeypatch.setattr(Branch, "__init__", slower)


def lepe_on_the_map(monkeypatch):
    """The convolution on the whole map instead of inside each stripe."""

    def forward(self, v, groups):
        image = groups.merge(v).permute(0, 3, 1, 2)
        return groups.split(self.conv(image).permute(0, 2, 3, 1))

    monkeypatch.setattr(attention.softmax.position.LePE, "forward", forward)


@pytest.mark.parametrize(
    "planted, text, index, size, checks",
    [
        (RollsBeforeItPads, "window:size=4", 1, (6, 7), "locality values"),
        (PadsInFront, "window:size=4", 0, (6, 7), "locality values"),
        (HidesByAPenalty, "window:size=4", 1, (8, 8), "locality"),
        (ShiftsEveryAxis, "window:size=4", 1, (4, 8), "locality values"),
        (ContiguousShuffle, "shuffle:size=3", 1, (6, 9), "locality values"),
        (StripesExchanged, "cross:size=2", 0, (6, 4), "values"),
        (LargerPadFirst, "cross:size=4", 0, (5, 8), "values locality"),
        (PadsBeforeItProjects, "cross:size=4", 0, (5, 4), "values"),
        (CropsBeforeItConvolves, "pale:size=2", 0, (5, 5), "locality"),
        (ShiftSwapped, "token_mlp:size=3", 1, (6, 6), "locality values"),
        (BackwardWrong, "window:size=2", 0, (2, 2), "gradients"),
        (FreePads, "window:size=4", 0, (6, 6), "cost"),
        (no_mask, "window:size=4", 1, (8, 8), "locality values"),
        (transposed_index, "window:size=4", 0, (4, 4), "values gradients"),
        (transposed_index, "cosine:size=2x3", 0, (4, 6), "values gradients"),
        (half_scale, "full", 0, (3, 3), "values single"),
        (lepe_on_the_map, "cross:size=2", 0, (4, 6), "values locality"),
    ],
)
def test_a_planted_mistake_is_caught(planted, text, index, size, checks, monkeypatch):
    """The same check passes on the real mixer and fails with one mistake in it."""
    case = Case(text, 8, 2, index, *size, seed=11)
    available = {
        "locality": check_locality, "values": check_values, "single": check_single,
        "gradients": check_gradients, "cost": check_cost,
    }  # fmt: skip
    for check in available.values():
        check(case.build(), case)
    config = attention.parse(text)
    if isinstance(planted, type):
        mixer = randomise(planted(config, dim=8, heads=2, index=index), case.seed).double().eval()
    else:
        planted(monkeypatch)
        mixer = case.build()
    for check in checks.split():
        with pytest.raises(AssertionError):
            available[check](mixer, case)
