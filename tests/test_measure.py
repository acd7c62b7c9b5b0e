"""Timing that survives doubt, on devices and clocks made for it: no test here depends on how fast
this machine is."""

from __future__ import annotations

import functools
import getpass
import json
import os
import platform
import random
import subprocess
import sys
import threading
from pathlib import Path
from statistics import median

import pytest
import tiny
import torch

import attention
import backbones
from analysis.models import counterparts
from analysis.models.influence import randomise
from analysis.results import environment, session, statistics, summary
from analysis.results.measurement import Measurement, from_dict
from analysis.results.summary import lines
from analysis.timing import build_model, memory, pieces, steps
from analysis.timing.clock import KNOWN_INPUTS, Clock, Runner, measure
from attention.execution import backends
from backbones.weights.reference_models import difference
from transom.errors import SpecError

WINDOW = "/".join(f"{i}=window:size=4" for i in (1, 2, 3, 4))
V2 = "/".join(f"{i}=cosine:size=4,mask_value=-100" for i in (1, 2, 3, 4))
BODY = "1.dim=16/2.dim=32/3.dim=64/4.dim=128/1.heads=1/2.heads=2/3.heads=4/4.heads=8/3.depth=2"
SMALL = f"swin_t/{BODY}/{WINDOW}/img_size=128/num_classes=10"
SMALL_V2 = f"swinv2_t_w8/{BODY}/{V2}/img_size=128/num_classes=10"


class Device:
    """A device that takes its time after the call has returned; the clock is its own."""

    def __init__(self, waits: bool = True) -> None:
        self.now, self.busy, self.calls, self.waits = 0.0, 0.0, 0, waits

    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sync, lambda seconds: None)

    def sync(self) -> None:
        if self.waits:
            self.now = max(self.now, self.busy)

    def run(self, seconds: float) -> None:
        self.now += 1e-5  # to tell the device
        self.busy = max(self.now, self.busy) + seconds
        self.calls += 1


def runner(device: Device, seconds=lambda call: 0.05, name: str = "one") -> Runner:
    def call(x):
        device.run(seconds(device.calls))
        return x

    return Runner(name, lambda seed: seed, call, lambda answer: repr(answer).encode())


# -- the device is waited for ----------------------------------------------------------------


def test_waits_for_the_device():
    device = Device()
    (own,) = measure([runner(device)], samples=10, clock=device.clock())
    assert all(abs(s - 0.05) < 0.05 * 0.05 for s in own.samples) and not own.wrong


def test_without_waiting_it_would_be_seen():
    """Negative control: a clock that does not wait sees the call alone."""
    device = Device(waits=False)
    (own,) = measure([runner(device)], samples=10, clock=device.clock())
    assert median(own.samples) < 0.001


# -- warm-up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [8.0, 2.7])
@pytest.mark.parametrize("usual", [0.0001, 0.002])
def test_twenty_slow_calls_move_the_median_by_less_than_one_percent(times, usual):
    device = Device()
    slow = runner(device, lambda call: usual * (times if call < 20 else 1.0))
    (own,) = measure([slow], samples=10, clock=device.clock())
    assert abs(median(own.samples) / (usual + 1e-5) - 1) < 0.01 and not own.unstable


def test_long_calls_that_settle_slowly():
    """Each of them is a median of its own; 5 must agree."""
    device = Device()
    slow = runner(device, lambda call: 0.2 * (1 + 7 * 0.5**call))
    (own,) = measure([slow], samples=10, clock=device.clock())
    assert abs(median(own.samples) / 0.2 - 1) < 0.05 and own.warm >= 5


def test_what_does_not_settle_is_called_unstable():
    chance, device = random.Random(0), Device()
    (own,) = measure(
        [runner(device, lambda call: 0.001 * (1 + chance.random()))], samples=10,
        clock=device.clock(),
    )  # fmt: skip
    assert own.unstable and own.warm >= 100


def test_a_machine_that_slows_down_is_called_unstable():
    device = Device()
    drifting = runner(device, lambda call: 0.1 * (1 if call < 12 else 1.2))
    (own,) = measure([drifting], samples=10, clock=device.clock())
    assert own.unstable
    (steady,) = measure([runner(Device(), lambda call: 0.1)], samples=10, clock=Device().clock())
    assert not steady.unstable


def test_no_input_is_timed_twice():
    """But for the known ones, which answers are compared on; a repeat is of the very tensor."""
    device, seeds = Device(), []
    made = runner(device, lambda call: 0.1)
    counted = Runner("one", lambda seed: seeds.append(seed) or seed, made.call, made.read)
    (own,) = measure([counted], samples=8, clock=device.clock())
    known = [seed for seed in seeds if seed < KNOWN_INPUTS]
    assert sorted(known) == [0, 0, 1, 1] and len(own.seen) == 2  # before, and in rounds 0 and 4
    rest = [seed for seed in seeds if seed >= KNOWN_INPUTS]
    assert len(set(rest)) == len(rest) == own.warm + 6


# -- order -----------------------------------------------------------------------------------


def orders(seed: int) -> list[tuple[int, ...]]:
    device, told = Device(), list[int]()
    some = [runner(device, name=str(i)) for i in range(4)]
    measure(some, samples=10, clock=device.clock(), seed=seed, on_start=told.append)
    assert told[:4] == [0, 1, 2, 3]  # the warm-up
    return [tuple(told[i : i + 4]) for i in range(4, len(told), 4)]


def test_entries_take_turns_in_a_new_order_every_round():
    found = orders(0)
    assert len(found) == 10 and all(sorted(turn) == [0, 1, 2, 3] for turn in found)
    assert len(set(found)) > 5 and found == orders(0) != orders(1)


def test_what_fails_is_kept_as_failed_and_stops_nobody():
    device = Device()

    def late(x):
        device.run(0.05)
        if device.calls > 30:
            raise RuntimeError("late")
        return x

    def never(x):
        raise ValueError("never")

    some = [Runner("n", lambda seed: seed, never, bytes), runner(device),
            Runner("l", lambda seed: seed, late, lambda a: b"")]  # fmt: skip
    first, good, last = measure(some, samples=10, clock=device.clock())
    assert isinstance(first, ValueError) and isinstance(last, RuntimeError)
    assert len(good.samples) == 10


# -- answers ---------------------------------------------------------------------------------


def honest(device: Device, x: torch.Tensor) -> torch.Tensor:
    device.run(0.05)
    return x * 2


class ByContent:
    def __init__(self) -> None:
        self.kept: dict[bytes, torch.Tensor] = {}

    def __call__(self, device: Device, x: torch.Tensor) -> torch.Tensor:
        key = x.numpy().tobytes()
        if key not in self.kept:
            self.kept[key] = honest(device, x)
        return self.kept[key]


class ByPlace:
    """Takes new content at an old address for what it has seen."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}

    def __call__(self, device: Device, x: torch.Tensor) -> torch.Tensor:
        place = x.storage_offset() + int(x.shape[0])  # all of one shape: as if at one address
        if place not in self.kept or device.calls < 2:
            self.kept[place] = honest(device, x)
        return self.kept[place]


class Early:
    """Returns at once what a thread fills in later."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, device: Device, x: torch.Tensor) -> torch.Tensor:
        for out, known in self.pending[-50:-2]:
            out.copy_(known * 2)  # what was asked for some calls ago is done by now
        out = torch.zeros_like(x)
        self.pending.append((out, x))
        device.run(0.0)
        return out


def judged(backend) -> tuple[str, float]:
    """(why the answers are wrong, how much slower new inputs are)."""
    device = Device()

    def fresh(seed: int) -> torch.Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(seed))

    one = Runner("x", fresh, lambda x: backend(device, x), steps.read)
    (own,) = measure([one], samples=10, clock=device.clock())
    return own.wrong, statistics.cached(own.firsts, own.repeats)


def test_a_difference_is_relative_and_no_number_is_infinitely_wrong():
    wanted = torch.tensor([4.0, -8.0])
    assert steps.absolute_or_relative_error(torch.tensor([4.0, -7.0]), wanted) == 1 / 8
    small = steps.absolute_or_relative_error(torch.tensor([0.25]), torch.tensor([0.0]))
    assert small == 0.25  # in units of 1
    for bad in (torch.tensor([4.0, torch.nan]), torch.tensor([4.0, torch.inf]), wanted[:1]):
        assert steps.absolute_or_relative_error(bad, wanted) == float("inf")


def test_an_honest_backend_is_believed():
    assert judged(honest) == ("", 0.0)


def test_a_cache_by_content_is_exposed():
    assert judged(ByContent())[1] > 100


def test_a_cache_by_address_is_exposed():
    assert "not the answer without a clock" in judged(ByPlace())[0]


def test_a_backend_that_returns_early_is_exposed():
    assert "not the answer without a clock" in judged(Early())[0]


def test_a_lazy_answer_is_computed_inside_the_clock():
    """`touch` makes it; negative control: without, its time is missed."""
    for touch, expected in ((lambda answer: answer(), 0.05), (lambda answer: None, 0.0)):
        device = Device()
        lazy = functools.partial(functools.partial, device.run, 0.05)
        one = Runner("lazy", lambda seed: seed, lambda x, f=lazy: f(), lambda a: b"", touch)
        (own,) = measure([one], samples=5, clock=device.clock())
        assert median(own.samples) == pytest.approx(expected, abs=1e-3)


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate "
    "memory: you tried"),
])  # fmt: skip
def test_the_batch_is_halved_where_memory_ends(error):
    tried = []

    def attempt(entry: Measurement) -> str:
        tried.append(entry.batch)
        if entry.batch > 3:
            raise error
        return "fits"

    entry = Measurement(kind="backbone", what="swin_t", batch=24)
    assert build_model.fitting(entry, attempt) == ("fits", 3) and tried == [24, 12, 6, 3]
    with pytest.raises(type(error)):
        build_model.fitting(Measurement(kind="backbone", what="swin_t", batch=2),
                         lambda e: (_ for _ in ()).throw(error))  # fmt: skip


def test_other_errors_do_not_change_the_batch():
    def attempt(entry: Measurement) -> None:
        assert entry.batch == 24
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        build_model.fitting(Measurement(kind="backbone", what="swin_t", batch=24), attempt)


def test_peak_memory_is_what_was_held_together():
    """Two blocks one after the other count once, together twice, nothing nothing."""
    side = 64 * 2**20

    def block() -> torch.Tensor:
        return torch.zeros(side // 4) + 1

    def one_by_one() -> None:
        block()
        block()

    def together() -> None:
        kept = [torch.ones(side // 4) for _ in range(3)]
        assert len(kept) == 3

    once, _ = memory.growth_of(lambda: torch.ones(side // 4))
    assert once == pytest.approx(side, rel=0.1)
    assert memory.growth_of(together)[0] == pytest.approx(3 * side, rel=0.1)
    assert memory.growth_of(one_by_one)[0] < 2.2 * side
    assert memory.growth_of(lambda: None)[0] < side / 20


def test_kilobytes_of_the_system_are_1024(monkeypatch):
    text = "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert (memory._status("VmHWM"), memory._status("VmRSS")) == (2 * 2**20, 2**20)


def test_memory_is_of_a_later_step(monkeypatch):
    """The first ones make what threads keep, and choose the backend."""
    seen, real = [], steps.Step.call

    def call(self, x):
        seen.append(len(x))
        return real(self, x)

    monkeypatch.setattr(steps.Step, "call", call)
    entry = Measurement(kind="mixer", what="window", batch=5, size=(8, 8), dim=8, heads=1)
    assert memory.peak(entry)["growth_bytes"] >= 0 and seen == [5, 5, 5]


# -- where it was measured ---------------------------------------------------------------------


def test_the_environment_says_enough_and_names_nobody(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "do-not-store-me")
    found = environment.header(threads=1)
    wanted = "processor cores threads mhz_now governor torch timm python torchvision transformers "
    wanted = set((wanted + "tf32 commit commit_dirty device").split())
    assert wanted <= set(found) and found["torch"] == torch.__version__.split("+")[0]
    text = json.dumps(found)
    told = [platform.node(), str(Path.home()), os.getcwd(), "do-not-store-me"]
    if len(getpass.getuser()) > 4:
        told.append(getpass.getuser())
    assert not [word for word in told if len(word) > 3 and word in text]
    assert not set(environment.TRANSIENT) & set(environment.lasting(found))


# -- the same weights --------------------------------------------------------------------------


@pytest.mark.parametrize("library", counterparts.LIBRARIES)
@pytest.mark.parametrize("what", [SMALL, SMALL_V2], ids=["swin", "swinv2"])
def test_a_peer_has_our_weights(library, what):
    """Equal logits; negative control: with one tensor changed they are not."""
    pytest.importorskip(library.partition("-")[0])
    spec = backbones.parse(what)
    ours = randomise(backbones.create(spec))
    theirs = counterparts.make(library, spec, ours)
    image = torch.randn(2, 3, 128, 128)
    worst, largest = difference(ours, theirs, image)
    assert worst <= summary.SAME * max(1.0, largest)
    with torch.no_grad():
        next(p for n, p in ours.named_parameters() if "stages.2" in n and "fc1" in n).mul_(1.01)
    assert difference(ours, theirs, image)[0] > summary.SAME * max(1.0, largest)


def test_a_peer_drops_nothing_in_training():
    """Stochastic depth would be less work at random."""
    spec = backbones.parse(SMALL)
    ours = randomise(backbones.create(spec))
    for library in ("timm", "torchvision"):
        theirs = counterparts.make(library, spec, ours).train()
        x = torch.randn(1, 3, 128, 128)
        assert torch.equal(theirs(x), theirs(x))


@pytest.mark.parametrize(
    ("library", "what", "words"),
    [
        ("timm", "cswin_t", ["timm has no counterpart of cswin_t", "swin_t", "swinv2_t_w8"]),
        ("torchvision", "swin_t/3=pale", ["no counterpart", "swin_t"]),
        ("transformers", "swin_t/1=window:shift=false", ["no counterpart"]),
        ("tim", "swin_t", ["'tim'", "did you mean 'timm'"]),
    ],
)
def test_a_peer_that_does_not_exist_is_one_line(library, what, words):
    with pytest.raises(SpecError) as caught:
        counterparts.require(library, what)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


# -- the worker ------------------------------------------------------------------------------

BACKENDS = """
import os, threading, time, torch
from torch import nn

class Good(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :1000].cumsum(1)

class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("not today\\nnor tomorrow")

class Dies(nn.Module):
    def forward(self, x):
        if x.device.type != "meta":
            os._exit(3)
        return x

class Small(nn.Module):
    def forward(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return x.flatten(1)[:, :10].clone()

class Caches(nn.Module):
    kept = {}
    def forward(self, x):
        if x.device.type == "meta":
            return x
        key = float(x.double().sum())
        if key not in self.kept:
            time.sleep(0.02)
            self.kept[key] = x.flatten(1)[:, :10].clone()
        return self.kept[key]

class Early(nn.Module):
    def forward(self, x):
        out = torch.zeros(len(x), 10)
        def later():
            time.sleep(0.05)
            out.copy_(x.flatten(1)[:, :10])
        threading.Thread(target=later).start()
        return out
"""


def plan(names, **more) -> session.Plan:
    group = [
        Measurement(kind="named", what=f"odd_backends:{n}", size=(32, 32), batch=4) for n in names
    ]
    return session.Plan(
        groups=[group], processes=1, samples=6, warm_seconds=0.1, **{"memory": 0, **more}
    )


def test_odd_backends_in_a_process_of_their_own(tmp_path, monkeypatch):
    """Each is exposed or kept as failed, and the good one is measured: in one job."""
    (tmp_path / "odd_backends.py").write_text(BACKENDS)
    monkeypatch.chdir(tmp_path)
    names = ["Good", "Raises", "Dies", "Small", "Caches", "Early"]
    rows = session.run(plan(names), environment.header())
    found = {line.measurement.what.partition(":")[2]: line for line in lines(rows)}
    assert list(found) == names
    assert found["Good"].usable and len(found["Good"].times[0]) == 6
    assert found["Raises"].status == "failed" and "not today nor" in found["Raises"].reason
    assert found["Dies"].status == "failed" and "code 3" in found["Dies"].reason
    assert found["Small"].usable
    assert (found["Small"].batch, found["Small"].measurement.batch) == (2, 4)
    assert found["Caches"].status == "invalid" and "new input" in found["Caches"].reason
    assert found["Early"].status == "invalid" and "without a clock" in found["Early"].reason
    assert found["Raises"].summary is found["Dies"].summary is None
    assert {row["process"] for row in rows} == {0} and len({row["key"] for row in rows}) == 6


def test_a_row_says_what_it_is_of(inline):
    """The config, what was used, and the environment, in every row of a worker."""
    group = [Measurement(kind="mixer", what="window", dim=8, heads=2, size=(8, 8), index=1),
             Measurement(kind="matmul", what="16x16x16")]  # fmt: skip
    rows = session.run(
        session.Plan(groups=[group], processes=1, samples=2, warm_seconds=0.1),
        environment.header(),
    )
    kinds = [(row["kind"], row["config"]["kind"]) for row in rows]
    assert kinds == [("time", "mixer"), ("time", "matmul"), ("memory", "mixer")]
    for row in rows:
        assert row["status"] == "ok" and row["environment"]["torch"] and row["at"] and row["took"]
    window = attention.create("window", dim=8, heads=2, index=1)
    assert (rows[0]["macs"], rows[1]["macs"]) == (window.cost(8, 8).total, 16**3)
    assert rows[2]["peak_bytes"] == rows[2]["weight_bytes"] + rows[2]["growth_bytes"]
    assert len(rows[0]["samples"]) == len(rows[1]["samples"]) == 2


FAULTS = """
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(48 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
@pytest.mark.parametrize("task, malloc, waits", [
    ("time", "keep", False), ("time", "default", True), ("memory", "keep", True),
])  # fmt: skip
def test_a_clock_does_not_wait_for_pages(task, malloc, waits):
    """Freed and asked for again, 48 MiB are pages of the kernel's only where they went back."""
    entry = Measurement(kind="matmul", what="16x16x16", malloc=malloc).to_dict()
    place = session.worker_environment({"task": task, "measurements": [entry]})
    done = subprocess.run([sys.executable, "-c", FAULTS], env=place, capture_output=True, text=True)
    assert (int(done.stdout) > 10_000) == waits, done


class Breaks(torch.nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x + 1


@pytest.mark.parametrize("states", ["on on on", "partial partial", "on partial partial"])
def test_what_is_called_compiled(states, monkeypatch):
    """Also of a model that runs the graph of one before; a graph that is none is none again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    entry = Measurement(kind="mixer", what="window", size=(8, 8), dim=8, heads=1, compile=True)
    for state in states.split():
        model = Breaks() if state == "partial" else attention.create("window", dim=8, heads=1)
        monkeypatch.setattr(build_model, "model_of", lambda entry, model=model: (model, None))
        assert build_model.build(entry, check=False).compiled == state
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["auto", "reference", "cpu", "kernel"])
def test_the_backend_runs_that_is_asked_for(name):
    seen, model = [], tiny.create("swin")
    entry = Measurement(kind="backbone", what="swin_t", backend=name, size=(64, 64))
    step = steps.Step(entry, model, (1, 3, 64, 64))
    model.stem.register_forward_pre_hook(lambda *_: seen.append(backends.asked()))
    if name == "kernel":
        with pytest.raises(ValueError, match="fused attention"):
            step.call(step.fresh(0))
    else:
        step.call(step.fresh(0))
    assert seen == [name]
    assert entry.label == ("transom" if name == "auto" else f"transom {name}")


def test_rows_of_before_are_read():
    """Their paths are the backends of today; a folded model is only read, never measured."""
    old = Measurement(kind="backbone", what="swin_t").to_dict()
    del old["backend"], old["without"]
    for path, name in (("fast", "auto"), ("plain", "reference"), ("folded", "folded")):
        assert from_dict(old | {"path": path}).backend == name
    with pytest.raises(SpecError, match="folded"):
        steps.Step(
            Measurement(kind="backbone", what="swin_t", backend="folded"), tiny.create("swin"),
            (1, 3, 64, 64),
        )  # fmt: skip


def test_a_backend_that_is_wrong_is_exposed(inline, monkeypatch):
    """Its answers agree with each other, but not with the reference's, which are right."""
    group = [
        Measurement(kind="mixer", what="window", dim=8, heads=2, size=(8, 8), batch=2, backend=name)
        for name in ("cpu", "reference")
    ]
    one = session.Plan(groups=[group], processes=1, samples=2, warm_seconds=0.1, memory=0)
    assert all(line.usable for line in lines(session.run(one, environment.header())))
    real = type(backends.CPU).over_groups
    monkeypatch.setattr(
        type(backends.CPU), "over_groups", lambda *args, **kw: 1.1 * real(*args, **kw)
    )
    quick, right = lines(session.run(one, environment.header()))
    assert quick.status == "invalid" and "from the eager float32 one" in quick.reason
    assert right.usable


@pytest.mark.parametrize("piece", pieces.PIECES)
def test_a_piece_that_is_switched_off_is_gone_and_comes_back(piece):
    """What the ablation measures: the same answer without the piece, by another way."""
    places = pieces.PIECES[piece]
    before = [getattr(place, name) for place, name, _ in places]
    net, x = tiny.create("swinv2"), tiny.images(3, 3, 64, 64)
    with torch.no_grad(), attention.backend("cpu"):
        want = net(x)
        with pieces.off(piece):
            assert [getattr(place, name) for place, name, _ in places] != before
            found = net(x)
    assert tiny.error(found, want) <= 1e-5 * float(want.abs().amax())
    assert [getattr(place, name) for place, name, _ in places] == before
    assert set(pieces.USED_IN) == set(pieces.PIECES)


def test_measured_rows_say_which_backend_ran(inline):
    entry = Measurement(kind="backbone", what="swin_t/2.depth=1/3.depth=1/4.depth=1", size=(32, 32))
    one = session.Plan(groups=[[entry]], processes=1, samples=2, warm_seconds=0.1, memory=0)
    (row,) = session.run(one, environment.header())
    assert set(row["backends"]) == {f"stages.{i}" for i in range(4)}
    assert row["backends"]["stages.0"] == "reference: small enough for one part"
