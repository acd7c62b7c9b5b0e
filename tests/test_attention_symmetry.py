"""What a partition promises without a reference: moving whole groups, and tokens inside them."""

import random

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BUILT_IN, SOFTMAX, Case, draw_config, fields_of, fitting

import attention

COUNT = 20
GROUPED = [name for name in BUILT_IN if name not in naive.ELSEWHERE]  # queries and keys alike


def expose(mixer):
    """The last projection becomes the identity: a branch can be read in its share of channels."""
    with torch.no_grad():
        for name, p in mixer.named_parameters():
            if name.endswith("proj.weight"):
                p.copy_(torch.eye(mixer.dim))
            if name.endswith("proj.bias"):
                p.zero_()
    return mixer


def without_convolution(mixer):
    """The depthwise kernels of pale become the identity."""
    with torch.no_grad():
        for name, p in mixer.named_parameters():
            if name.endswith("depthwise.weight"):
                p.zero_()
                p[:, 0, 1, 1] = 1
    return mixer


def dividing_case(name, seed, groups=(1, 3), index=None, **fixed):
    """A case on a map of whole windows, at most four of them along an axis."""
    rng = random.Random(f"{name} {seed}")
    size = (rng.randint(2, 4), rng.randint(2, 5))
    config = draw_config(rng, name, size=size, order="parallel", **fixed)
    run = getattr(config, "interval", None) or 1  # windows that a group of one of these covers
    h, w = (run * side * rng.randint(*groups) for side in size)
    index = rng.choice([0, 1]) if index is None else index
    dim, heads = fitting(config, 2, 4)
    return Case(str(config), dim, heads, index, h, w, seed)


def shares(mixer, branches):
    """(branch, its channels) for each branch of the only layer."""
    width = mixer.dim // len(branches)
    return [(b, slice(i * width, (i + 1) * width)) for i, b in enumerate(branches)]


def runs(line):
    """Is this axis cut into runs of neighbours, and into more than one?"""
    whole_runs = line.piece == [i // line.extent for i in range(line.total)]
    return whole_runs and line.extent < line.total


CONTIGUOUS = [name for name in GROUPED if name not in ("pale", "full")]


def rolled_by(branch):
    """One window along every axis that is cut into runs; nothing along a whole one."""
    return [line.extent if runs(line) else 0 for line in (branch.rows, branch.cols)]


@pytest.mark.parametrize("name", CONTIGUOUS)
@settings(max_examples=COUNT)
@given(seed=st.integers(0, 2**40))
def test_translation_by_whole_windows(name, seed):
    """A7: unshifted windows and stripes do not know which window they are: bit-equal in fp32."""
    case = dividing_case(name, seed, groups=(1, 4), index=0)
    mixer, x = expose(case.build(torch.float32)), case.input(1, torch.float32)
    (branches,) = naive.layers(mixer, case.h, case.w)
    with torch.no_grad():
        still = mixer(x)
        for branch, c in shares(mixer, branches):
            by = rolled_by(branch)
            moved = mixer(x.roll(by, (1, 2)))
            assert torch.equal(moved[..., c], still.roll(by, (1, 2))[..., c])


@pytest.mark.parametrize("name", [name for name in CONTIGUOUS if name != "axial"])
def test_translation_by_one_is_another_partition(name):
    """The control of A7: shifted by one token, other tokens meet.  Axial has windows of one."""
    for seed in range(COUNT):
        case = dividing_case(name, seed, groups=(2, 3), index=0)
        mixer, x = expose(case.build()), case.input()
        (branches,) = naive.layers(mixer, case.h, case.w)
        with torch.no_grad():
            for branch, c in shares(mixer, branches):
                by = [int(step > 1) for step in rolled_by(branch)]
                moved = mixer(x.roll(by, (1, 2)))
                assert not torch.allclose(moved[..., c], mixer(x).roll(by, (1, 2))[..., c])


def regroup(branch, rng, inside):
    """A permutation of the tokens: inside every group, or of whole groups with their order."""
    groups = {}
    for token, key in enumerate(zip(*(t.tolist() for t in branch.spread("part")), strict=True)):
        groups.setdefault(key, []).append(token)
    members = list(groups.values())
    target = torch.empty(sum(map(len, members)), dtype=torch.long)
    for old, new in zip(members, members if inside else rng.sample(members, len(members)),
                        strict=True):  # fmt: skip
        target[old] = torch.tensor(rng.sample(new, len(new)) if inside else new)
    return target


def check_permutation(mixer, case, inside):
    rng, x = random.Random(case.seed), case.input()
    (branches,) = naive.layers(mixer, case.h, case.w)
    with torch.no_grad():
        still = mixer(x).flatten(1, 2)
        for branch, c in shares(mixer, branches):
            order = regroup(branch, rng, inside)
            moved = mixer(x.flatten(1, 2)[:, order].view_as(x)).flatten(1, 2)
            error = (moved[..., c] - still[:, order][..., c]).abs().max()
            assert error <= 1e-12 * max(1.0, float(still.abs().max())), f"{error:.1e}"


@pytest.mark.parametrize("name", [name for name in GROUPED if name in SOFTMAX])
@settings(max_examples=COUNT)
@given(seed=st.integers(0, 2**40))
def test_tokens_of_a_group_are_a_set(name, seed):
    """A8: without positions, permuting the tokens of every group permutes the output."""
    case = dividing_case(name, seed, position="none", mask_value=None)
    check_permutation(without_convolution(expose(case.build())), case, inside=True)


@pytest.mark.parametrize("name", GROUPED)
@settings(max_examples=COUNT)
@given(seed=st.integers(0, 2**40))
def test_groups_are_a_set(name, seed):
    """A8: permuting whole groups permutes the output, whatever the positions inside them."""
    index = None if name == "shuffle" else 0  # a shifted map has groups of several sizes
    case = dividing_case(name, seed, index=index)
    check_permutation(without_convolution(expose(case.build())), case, inside=False)


@pytest.mark.parametrize("name", [name for name in GROUPED if name in SOFTMAX])
def test_positions_make_the_order_matter(name):
    """The control of A8: with log-CPB the tokens of a group are no longer a set."""
    case = dividing_case(name, 7, groups=(2, 2), position="log_cpb", mask_value=None)
    with pytest.raises(AssertionError):
        check_permutation(without_convolution(expose(case.build())), case, inside=True)


@pytest.mark.parametrize("name", ["shuffle", "pale"])
def test_groups_that_are_cut_otherwise_are_caught(name):
    """The control of A8: permuted as if the groups were runs, an interlaced cut is not equal."""
    case = Case(f"{name}:size=2,position=none", 8, 2, 1, 4, 4, seed=3)
    mixer = without_convolution(expose(case.build()))
    check_permutation(mixer, case, inside=True)
    layers = naive.layers

    def contiguous(mixer, h, w):
        (branches,) = layers(mixer, h, w)
        return [[
            b._replace(**{
                side: naive.contiguous(line.length, line.extent)
                for side, line in (("rows", b.rows), ("cols", b.cols))
                if line.extent < line.total
            })
            for b in branches
        ]]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naive, "layers", contiguous)
        with pytest.raises(AssertionError):
            check_permutation(mixer, case, inside=True)


def test_every_mixer_is_here():
    """A new mixer is either translated here, or has a reason not to be."""
    here = {*CONTIGUOUS, "pale", "full", *naive.ELSEWHERE}
    assert here == set(BUILT_IN) <= set(attention.names())
    assert "size" not in fields_of("full")
