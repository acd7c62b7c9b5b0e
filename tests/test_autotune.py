"""A backend is chosen where it is right and not slower, and by nothing else; a choice can be
asked, saved and read back."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny import create, images, randomise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import attention
from attention.execution import autotune, backends, dispatch
from attention.execution.backends import CPU, KERNEL, REFERENCE
from attention.fast import plain
from attention.kernels import fused
from attention.softmax.branch import Branch
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
SECONDS: dict[str, float] = {}


@pytest.fixture
def timed(monkeypatch):
    """The names of the backends that were timed; a call takes what SECONDS says."""
    names: list[str] = []
    SECONDS.clear()
    SECONDS.update(reference=2.0, cpu=1.0, kernel=1.0)

    def seconds(call, on):
        ran.clear()
        call()
        names.append(ran[0])
        return SECONDS[ran[0]]

    monkeypatch.setattr(autotune, "seconds", seconds)
    return names


ran: list[str] = []


def work(factors=None, inner=lambda x: 2 * x):
    def run(x, backend):
        ran.append(backend.name)
        return (factors or {}).get(backend.name, 1.0) * inner(x)

    return run


def winner(run=None, x=X, parameters=(), key="key", candidates=(REFERENCE, CPU)):
    return autotune.fastest(key, candidates, run or work(), x, parameters).name


def test_the_faster_one_wins_and_is_asked_once(timed):
    assert winner() == "cpu"
    assert timed.count("cpu") == timed.count("reference") == autotune.ROUNDS
    assert winner() == "cpu" and len(timed) == 2 * autotune.ROUNDS
    SECONDS["cpu"] = 2.2
    assert winner() == "cpu" and winner(key="another") == "reference"
    SECONDS["cpu"] = 2.08  # nearly as fast, and it saves memory
    assert winner(key="a third") == "cpu"


def test_a_kernel_that_is_hardly_faster_loses(timed):
    """It sums in another order."""
    SECONDS["kernel"] = 1.97
    assert winner(candidates=(REFERENCE, KERNEL)) == "reference"
    SECONDS["kernel"] = 1.9
    assert winner(candidates=(REFERENCE, KERNEL), key="another") == "kernel"


def test_the_least_of_all_rounds_counts(timed, monkeypatch):
    once = iter([9.0, 1.0, 9.0, 1.9, 9.0, 9.0, 9.5, 9.5, 9.5, 9.5])
    monkeypatch.setattr(autotune, "seconds", lambda call, on: (call(), next(once))[1])
    assert winner() == "cpu"
    assert "measured: reference 9e+03 ms, cpu 1e+03 ms" in autotune.choices()["key"].reason


def test_another_result_is_refused_with_its_name(timed):
    with pytest.warns(UserWarning, match="cpu backend is not used here: its result is off by 0.5"):
        assert winner(work({"cpu": 1.5})) == "reference"
    assert not timed and "cpu is refused" in autotune.choices()["key"].reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert winner(work({"cpu": 1.5})) == "reference"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_loses(timed, value):
    with pytest.warns(UserWarning, match="is not used here"):
        assert winner(work({"cpu": value})) == "reference"


def test_one_that_fails_is_refused_with_its_name(timed):
    def fails(x, backend):
        if backend is CPU:
            raise RuntimeError("out of\nshared memory")
        return x

    with pytest.warns(UserWarning, match="cpu backend .* RuntimeError: out of shared memory"):
        assert winner(fails) == "reference"


def test_tf32_is_no_other_result(timed):
    """Where torch may multiply in TF32, the reference is as far from the right result."""
    with pytest.warns(UserWarning, match="off by 0.001"):
        assert winner(work({"cpu": 1.001})) == "reference"
    torch.set_float32_matmul_precision("high")
    try:
        assert winner(work({"cpu": 1.001}), key="another") == "cpu"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_inputs_that_are_no_numbers_decide_nothing(timed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert winner(x=X / 0) == "reference"
    assert not autotune.choices() and winner() == "cpu"


def test_a_hook_of_a_parameter_is_not_called(timed):
    p = torch.nn.Parameter(torch.ones(2, 3))
    handle = p.register_hook(lambda grad: pytest.fail("called"))
    run = work(inner=lambda x: x * p)
    assert winner(run, parameters=[p]) == "reference" and not timed
    handle.remove()
    assert winner(run, parameters=[p]) == "cpu"


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        return x * p

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def test_gradients_are_compared_where_somebody_asks_for_them(timed):
    """Of parameters too, which are left as they were."""
    p, unused = (torch.nn.Parameter(torch.full((2, 3), 2.0)) for _ in range(2))

    def run(x, backend):
        ran.append(backend.name)
        return WrongBackward.apply(x, p) if backend is CPU else x * p

    with pytest.warns(UserWarning, match="its result is off"):
        assert winner(run, parameters=[p, unused]) == "reference"
    assert p.grad is None
    with torch.no_grad():
        assert winner(run, parameters=[p], key="no gradients") == "cpu"
    p.requires_grad_(False)
    assert winner(run, parameters=[p], key="frozen") == "cpu"


def test_the_caller_notices_nothing(timed):
    """Neither in the graph of the inputs, nor in random numbers, nor among what is checkpointed."""
    x, state, seen = X.clone().requires_grad_(), torch.get_rng_state(), []
    run = work(inner=torch.exp)  # keeps its result for backward

    def step(x):
        x.register_hook(seen.append)
        return run(x, backends.BY_NAME[winner(run, x)])

    (grad,) = torch.autograd.grad(checkpoint(step, 1 * x, use_reentrant=False).sum(), x)
    assert torch.allclose(grad, x.exp()) and len(timed) == 2 * autotune.ROUNDS
    assert torch.equal(torch.get_rng_state(), state) and x.grad is None
    assert len(seen) <= 2  # forward and its recomputation asked


def test_ranks_never_measure_apart(timed, monkeypatch):
    """Each would decide by its own clock; what was saved holds for all."""
    monkeypatch.setattr(autotune, "_ranks", lambda: 2)
    choice = autotune.fastest("key", (REFERENCE, CPU), work(), X, ())
    assert choice.name == "reference" and "ranks" in choice.reason and not timed
    autotune._choices["key"] = backends.Choice(CPU, "loaded")
    assert winner() == "cpu" and not timed


def test_seconds_are_of_the_call():
    calls = []
    assert 0 < autotune.seconds(lambda: calls.append(1), torch.device("cpu")) < 60
    assert calls == [1]


# -- saved choices -----------------------------------------------------------------------------


def test_choices_are_saved_and_read_back(timed, tmp_path):
    winner(), winner(key="other", run=work({"cpu": 1.0}))
    SECONDS["cpu"] = 9.0
    winner(key="slow")
    autotune.save(tmp_path / "choices.json")
    made = {key: choice.name for key, choice in autotune.choices().items()}
    assert made == {"key": "cpu", "other": "cpu", "slow": "reference"}
    autotune.forget()
    autotune.load(tmp_path / "choices.json")
    timed.clear()
    assert {key: choice.name for key, choice in autotune.choices().items()} == made
    assert winner() == "cpu" and winner(key="slow") == "reference" and not timed
    assert autotune.choices()["key"].reason.startswith("loaded: measured")
    assert os.listdir(tmp_path) == ["choices.json"]


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"key": {"backend": "gpu", "reason": ""}}', '{"key": {"backend": "cpu"}}',
    '{"key": 3}', "\0", '{"a": {"backend": "cpu", "reason": ""}, "b": null}',
])  # fmt: skip
def test_a_file_of_something_else_is_refused_whole(text, tmp_path):
    (path := tmp_path / "choices.json").write_text(text)
    with pytest.raises(SpecError) as refused:
        autotune.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert not autotune.choices()
    with pytest.raises(SpecError):
        autotune.load(tmp_path / "nowhere.json")


def test_a_save_that_fails_leaves_the_old_file(timed, tmp_path, monkeypatch):
    winner()
    (path := tmp_path / "choices.json").write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SpecError, match=r"choices\.json: No space left"):
        autotune.save(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["choices.json"]


PROCESS = """
import sys, torch, attention
from attention.execution import autotune
torch.set_num_threads(1)
autotune.load(sys.argv[1])
autotune.seconds = lambda *a: sys.exit("timed")
mixer = attention.create("window:size=4", dim=8, heads=2, index=1).eval()
with torch.no_grad():
    choice = attention.backend_of(mixer, torch.zeros(2, 8, 8, 8))[""]
print(choice.name)
"""


@torch.no_grad()
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_two_processes_with_a_saved_choice_take_the_same_path(name, timed, tmp_path, monkeypatch):
    """Whichever it is, without timing anything."""
    mixer = attention.create("window:size=4", dim=8, heads=2, index=1).eval()
    clock = {"cpu": 1.0, "reference": 1.0, name: 0.5}
    monkeypatch.setattr(autotune, "seconds", lambda call, on: clock[call.args[0].name])
    assert attention.backend_of(mixer, torch.zeros(2, 8, 8, 8))[""].name == name
    autotune.save(path := tmp_path / "choices.json")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, path], capture_output=True, text=True, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr


# -- in stages and mixers ----------------------------------------------------------------------


@torch.no_grad()
def test_a_stage_takes_the_faster_backend(monkeypatch):
    """A planted slower one is not chosen; a stage that is cut nowhere measures nothing."""
    from attention.execution import chunks

    monkeypatch.setattr(chunks, "IMAGES", 1)
    model, x = create("swin"), images(3, 3, 64, 64)
    for faster in "cpu", "reference":
        autotune.forget()
        clock = {"cpu": 2.0, "reference": 2.0, faster: 1.0}
        monkeypatch.setattr(autotune, "seconds", lambda call, on, c=clock: c[call.args[0].name])
        chosen = attention.backend_of(model, x)
        assert {c.name for c in chosen.values()} == {faster}
        assert len(autotune.choices()) == 4
    autotune.forget()
    monkeypatch.undo()
    chosen = attention.backend_of(model, x[:1])
    assert {c.reason for c in chosen.values()} == {"small enough for one part"}
    assert not autotune.choices()


@torch.no_grad()
def test_a_stage_refuses_a_wrong_backend(monkeypatch):
    from attention.execution import chunks

    monkeypatch.setattr(chunks, "IMAGES", 1)
    real = chunks.joined
    monkeypatch.setattr(chunks, "joined", lambda *a: 1.5 * real(*a))
    model, x = create("swin"), images(4, 3, 64, 64)
    with plain():
        want = model(x)
    with pytest.warns(UserWarning, match="the cpu backend is not used here: its result is off"):
        found = model(x)
    assert torch.equal(found, want)


@torch.no_grad()
def test_a_kind_of_call_is_measured_anew():
    """Another mode, type, size or module is another kind; the same again is not."""
    mixer = attention.create("window:size=4", dim=8, heads=2, index=1).eval()
    other = attention.create("window:size=4", dim=8, heads=2, index=0).eval()
    x = images(2, 8, 8, 8)
    calls = (mixer, x), (mixer, images(2, 16, 16, 8)), (other, x), (mixer, x.double())
    for kinds, (module, given) in enumerate(calls, start=1):
        module.to(given.dtype)
        for _ in range(2):
            module(given)
        assert len(autotune.choices()) == kinds


MIXERS = [
    "window:size=4", "cosine:size=4", "shuffle:size=3", "cross:size=2", "axial", "pale:size=3",
]  # fmt: skip


@pytest.fixture
def kernel(monkeypatch, timed):
    """A kernel for CPUs: the reference under another name.  Counts its calls."""
    calls: list[str] = []

    def by_kernel(self, q, k, v, groups):
        calls.append("kernel")
        ran.append("kernel")
        q, k, v = (groups.split(groups.roll(t)) for t in (q, k, v))
        return groups.unroll(groups.merge(real(self, q, k, v, groups)))

    def forward(self, q, k, v, groups, part=slice(None)):
        ran.append("reference")
        return real(self, q, k, v, groups, part)

    real = Branch.forward
    monkeypatch.setattr(Branch, "by_kernel", by_kernel)
    monkeypatch.setattr(Branch, "forward", forward)
    monkeypatch.setattr(dispatch, "TRIED_ON", ("cpu",))
    monkeypatch.setattr(fused, "supported", lambda *a, **o: None)
    rules = dispatch._rules

    def on_gpu(module, x, tokens, asked):
        if asked == "auto" and not torch.compiler.is_compiling():
            reason = dispatch.observer(module, x)
            if not reason:
                return dispatch._on_gpu(module, x, tokens)
        return rules(module, x, tokens, asked)

    monkeypatch.setattr(dispatch, "_rules", on_gpu)
    return calls


def mixer_of(name):
    mixer = randomise(attention.create(name, dim=32, heads=2, index=1), 0)
    return mixer, torch.randn(1, 5, 7, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_takes_the_kernel_that_wins(name, kernel, timed):
    mixer, x = mixer_of(name)
    with plain():
        want = mixer(x)
    assert not kernel and not timed
    mixer(x)
    kernel.clear(), timed.clear()
    assert (mixer(x) - want).abs().max() <= 1e-5 * want.abs().max()
    assert kernel and not timed
    SECONDS["kernel"] = 9.0
    with torch.no_grad():  # another question
        mixer(x)
        assert timed
        kernel.clear()
        assert (mixer(x) - want).abs().max() <= 1e-5 * want.abs().max() and not kernel


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_asked_for_the_kernel_takes_it(name, kernel):
    mixer, x = mixer_of(name)
    with plain():
        want = mixer(x)
    with fused.kernel():
        found = mixer(x)
    assert kernel and (found - want).abs().max() <= 1e-5 * want.abs().max()


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


def test_gradients_by_the_kernel_that_wins(kernel):
    mixer, x = mixer_of("window:size=4")
    found = []
    for _ in range(2):  # the contest, then the winner
        kernel.clear()
        found.append(torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters())))
        assert kernel and all(p.grad is None for p in mixer.parameters())
    with plain():
        want = torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters()))
    largest = max(t.abs().max() for t in want)
    for grads in found:
        for a, b in zip(grads, want, strict=True):
            assert (a - b).abs().max() <= 1e-5 * largest
