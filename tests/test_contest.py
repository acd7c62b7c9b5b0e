"""A kernel is chosen where it is faster and has the same result, and by nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import randomise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import attention
from attention import contest, fast, fused

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_verdicts(monkeypatch):
    monkeypatch.setattr(contest, "_verdicts", {})


@pytest.fixture
def timed(monkeypatch):
    """The names of the ways that were timed; by their names, they take a second or two."""
    names: list[str] = []

    def seconds(call, on):
        ran.clear()
        call()
        names.append(ran[0])
        return SECONDS[ran[0]]

    monkeypatch.setattr(contest, "seconds", seconds)
    return names


SECONDS = {"slow": 2.0, "fast": 1.0, "hardly faster": 1.97}
ran: list[str] = []


def way(name, factor=2.0):
    def run(*inputs):
        ran.append(name)
        return sum(factor * t for t in inputs)

    return run


def won(other, usual, *inputs, parameters=(), key="key"):
    return contest.won(key, other, usual, inputs or (X,), parameters)


def test_the_faster_one_wins_and_is_asked_once(timed):
    assert won(way("fast"), way("slow"))
    assert timed.count("fast") == timed.count("slow") == contest.ROUNDS
    assert won(way("fast"), way("slow")) and len(timed) == 2 * contest.ROUNDS
    assert not won(way("slow"), way("fast"), key="another")
    assert not won(way("hardly faster"), way("slow"), key="a third")


def test_every_shape_and_mode_has_its_own_verdict(timed):
    for inputs in (X,), (X[:1],), (X.clone().requires_grad_(),), (X, X):
        before = len(timed)
        assert won(way("fast"), way("slow"), *inputs)
        assert len(timed) == before + 2 * contest.ROUNDS
    with torch.no_grad():
        assert won(way("fast"), way("slow"))
    assert len(timed) == 10 * contest.ROUNDS


def test_another_result_loses_and_is_said(timed):
    with pytest.warns(UserWarning, match="kernel is not used here: its result is off by 0.5"):
        assert not won(way("fast", factor=3.0), way("slow"))
    assert not timed
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert not won(way("fast", factor=3.0), way("slow"))


def test_tf32_is_no_other_result(timed):
    """Where torch may multiply in TF32, the usual way is as far from the right result."""
    other = way("fast", factor=2.002)
    with pytest.warns(UserWarning, match="off by 0.001"):
        assert not won(other, way("slow"))
    torch.set_float32_matmul_precision("high")
    try:
        assert won(other, way("slow"), key="another")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_inputs_that_are_no_numbers_decide_nothing(timed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not won(way("fast"), way("slow"), X / 0)
    assert won(way("fast"), way("slow"))


def test_a_hook_of_a_parameter_is_not_called(timed):
    p = torch.nn.Parameter(torch.ones(2, 3))
    handle = p.register_hook(lambda grad: pytest.fail("called"))
    ways = (lambda x: way("fast")(x) * p), (lambda x: way("slow")(x) * p)
    assert not won(*ways, parameters=[p]) and not timed
    handle.remove()
    assert won(*ways, parameters=[p])


def test_a_parameter_that_is_not_used_is_no_difference(timed):
    p, unused = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    ways = (lambda x: way("fast")(x) * p), (lambda x: way("slow")(x) * p)
    assert won(*ways, parameters=[p, unused])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_loses(timed, value):
    with pytest.warns(UserWarning, match="is not used here"):
        assert not won(way("fast", factor=value), way("slow"))


def test_one_that_fails_loses_and_is_said(timed):
    def fails(x):
        raise RuntimeError("out of\nshared memory")

    with pytest.warns(UserWarning, match="RuntimeError: out of shared memory"):
        assert not won(fails, way("slow"))
    assert won(way("fast"), way("slow"), key="another")


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        return x * p

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def test_gradients_are_compared_where_somebody_asks_for_them(timed):
    """Of parameters too, which are left as they were."""
    p = torch.nn.Parameter(torch.full((2, 3), 2.0))

    def right(x):
        ran.append("slow")
        return x * p

    def wrong(x):
        ran.append("fast")
        return WrongBackward.apply(x, p)

    with pytest.warns(UserWarning, match="its result is off"):
        assert not won(wrong, right, parameters=[p])
    assert p.grad is None
    with torch.no_grad():
        assert won(wrong, right, parameters=[p])
    p.requires_grad_(False)
    assert won(wrong, right, parameters=[p], key="frozen")


def test_the_caller_notices_nothing(timed):
    """Neither in the graph of the inputs, nor in random numbers, nor among what is checkpointed."""
    x, state, seen = X.clone().requires_grad_(), torch.get_rng_state(), []

    def one(x):  # keeps its result for backward
        ran.append("fast")
        return x.exp()

    def two(x):
        ran.append("slow")
        return x.exp()

    def step(x):
        x.register_hook(seen.append)
        return one(x) if won(one, two, x) else two(x)

    (grad,) = torch.autograd.grad(checkpoint(step, 1 * x, use_reentrant=False).sum(), x)
    assert torch.allclose(grad, x.exp()) and len(timed) == 2 * contest.ROUNDS
    assert torch.equal(torch.get_rng_state(), state) and x.grad is None
    assert len(seen) <= 2  # forward and its recomputation asked


def test_autocast_is_the_callers(timed):
    layer = torch.nn.Linear(3, 3)
    kinds = []

    def run(x):
        ran.append("fast")
        y = layer(x)
        kinds.append(y.dtype)
        return y

    with torch.autocast("cpu", torch.bfloat16):
        won(run, run, parameters=layer.parameters())
        layer(X).sum().backward()
    assert set(kinds) == {torch.bfloat16} and layer.weight.grad is not None


def test_seconds_are_of_the_call():
    calls = []
    assert 0 < contest.seconds(lambda: calls.append(1), torch.device("cpu")) < 60
    assert calls == [1]


# -- in the mixers, whose kernel is stood in for ------------------------------------------------

MIXERS = [
    "window:size=4", "cosine:size=4", "shuffle:size=3", "cross:size=2", "axial", "pale:size=3",
]  # fmt: skip


@pytest.fixture
def kernel(monkeypatch, timed):
    """A kernel for CPUs: the plain path under another name.  Counts its calls."""
    from attention.branch import Branch

    calls: list[str] = []

    def by_kernel(self, q, k, v, groups):
        calls.append("fast")
        ran.append("fast")
        q, k, v = (groups.roll(t) for t in (q, k, v))
        return groups.unroll(plain(self, q, k, v, groups))

    def forward(self, q, k, v, groups):
        ran.append("slow")
        return plain(self, q, k, v, groups)

    plain = Branch.forward
    monkeypatch.setattr(Branch, "by_kernel", by_kernel)
    monkeypatch.setattr(Branch, "forward", forward)
    monkeypatch.setattr(fused, "UNASKED", ("cpu",))
    monkeypatch.setattr(fused, "supported", lambda *a, **o: None)
    monkeypatch.setattr(fast, "DTYPES", ())  # as on a GPU
    return calls


def mixer_of(name):
    mixer = randomise(attention.create(name, dim=32, heads=2, index=1), 0)
    return mixer, torch.randn(1, 5, 7, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_takes_the_winner(name, kernel, timed, monkeypatch):
    mixer, x = mixer_of(name)
    with fast.plain():
        want = mixer(x)
    assert not kernel and not timed
    mixer(x)
    kernel.clear(), timed.clear()
    assert (mixer(x) - want).abs().max() <= 1e-5 * want.abs().max()
    assert kernel and not timed
    if "size=4" in name:
        mixer(torch.cat([x, x], 1)[:, :6])  # groups as before, about as many tokens
        assert not timed
    monkeypatch.setitem(SECONDS, "fast", 9.0)
    with torch.no_grad():  # another question
        mixer(x)
        assert timed
        kernel.clear()
        assert torch.equal(mixer(x), want) and not kernel


def refuses_others(mixer, x):
    with sdpa_kernel(SDPBackend.MATH):
        mixer(x)


def deterministic(mixer, x):
    torch.use_deterministic_algorithms(True)
    try:
        mixer(x)
    finally:
        torch.use_deterministic_algorithms(False)


def hooked(mixer, x):
    handle = mixer.proj.register_forward_hook(lambda *_: None)
    mixer.branch.register_forward_hook(lambda *_: None)
    mixer(x)
    handle.remove()


def compiled(mixer, x):
    torch._dynamo.reset()
    torch.compile(mixer, backend="eager", fullgraph=True)(x)


def on_meta(mixer, x):
    with torch.device("meta"):
        mixer.to("meta")(x.to("meta"))


def unsupported(mixer, x):
    fused.supported = lambda *a, **o: "too small"
    mixer(x)


@pytest.mark.parametrize(
    "look", [refuses_others, deterministic, hooked, compiled, on_meta, unsupported]
)
def test_nothing_is_tried_where_it_must_not_be(look, kernel, timed):
    mixer, x = mixer_of("window:size=4")
    look(mixer, x)
    assert not kernel and not timed


def test_gradients_by_the_winner(kernel):
    mixer, x = mixer_of("window:size=4")
    found = []
    for _ in range(2):  # the contest, then the winner
        kernel.clear()
        found.append(torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters())))
        assert kernel and all(p.grad is None for p in mixer.parameters())
    with fast.plain():
        want = torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters()))
    largest = max(t.abs().max() for t in want)
    for grads in found:
        for a, b in zip(grads, want, strict=True):
            assert (a - b).abs().max() <= 1e-5 * largest
