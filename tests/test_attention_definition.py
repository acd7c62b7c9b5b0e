"""Every mixer against its definition (naive.py): regions, values, gradients and costs.

The four check functions are run over the whole registry, and then on mixers with one planted
mistake each: a check that lets a planted mistake pass would be no check.
"""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

import attention
import naive
from strategies import BUILT_IN, Case, cases

DOUBLE, FLOAT = torch.float64, torch.float32


def over_mixers(default, full, **options):
    """Runs a test of one case on every mixer: `default` cases of each, `full` when slow."""

    def wrap(test):
        def body(name, count):
            settings(max_examples=count)(given(cases(name, **options))(test))()

        def run(name):
            body(name, default)

        def run_slow(name):
            body(name, full)

        parametrised = pytest.mark.parametrize("name", BUILT_IN)
        run.__doc__ = run_slow.__doc__ = test.__doc__
        return parametrised(run), pytest.mark.slow(parametrised(run_slow))

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
    """The support of the gradient is the region, as the definition and the mixer state it."""
    n = case.h * case.w
    found = support(mixer, case.h, case.w, case.dim, case.input())
    defined = naive.pairs(mixer, case.h, case.w)
    assert not (found & ~defined).any(), f"{int((found & ~defined).sum())} illegal pairs of {n}^2"
    assert not (defined & ~found).any(), f"{int((defined & ~found).sum())} missing pairs of {n}^2"
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
    x = case.input(batch, FLOAT)
    with torch.no_grad():
        wanted = naive.forward(copy.deepcopy(single).double(), x.double())
        error = (single(x).double() - wanted).abs().max()
    assert error <= 1e-5, f"fp32 differs by {error:.1e}"
    assert error <= 2e-6 * wanted.abs().max(), f"fp32: {error:.1e} of {wanted.abs().max():.1e}"


def check_gradients(mixer, case, batch=2):
    """d(random projection)/d(input and every parameter), fp64 to 1e-9."""
    x = case.input(batch).requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    of = {"input": x} | dict(mixer.named_parameters())
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), list(of.values()))
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


@over_mixers(40, 300, side=9)
def locality(case):
    """A1: no pair too many and no pair too few, by gradient, on any map."""
    check_locality(case.build(), case)


test_locality, test_locality_slow = locality


@over_mixers(40, 640)
def values(case):
    """A2: equal to the naive softmax in fp64, also with the cosine scale beyond its clamp."""
    check_values(case.build(hot=case.seed % 2 == 1), case)


test_values, test_values_slow = values


@over_mixers(40, 640, head_dims=(2, 4, 8))
def single(case):
    """A2: fp32 within 1e-5, and within 2e-6 of the largest output."""
    check_single(case.build(), case)


test_single, test_single_slow = single


@over_mixers(20, 100, side=8)
def gradients(case):
    """A3: the gradient of the input and of every parameter."""
    check_gradients(case.build(hot=case.seed % 2 == 1), case)


test_gradients, test_gradients_slow = gradients


@over_mixers(40, 1000, side=24)
def costs(case):
    """The stated multiply-adds are those of the definition, one by one."""
    check_cost(case.build(), case)


test_cost, test_cost_slow = costs
