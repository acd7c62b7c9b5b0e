"""Seconds of calls, with checks against caching, lazy results and drift.

Every call ends when the device is done and its answer can be read.  Runners are warmed up until
their times agree, then run in a new random order in every round, on new inputs.  Some inputs are
repeated, which shows caching, and some answers are compared with answers computed before the
timing, which are read at the end, when deferred work is done.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

TOLERANCE, MEDIANS = 0.05, 5  # the last 5 medians within 5%
SHORT, CALLS = 0.05, 5  # a median is of up to 5 calls, of one where it takes 0.05 s
KNOWN_INPUTS = 2  # inputs whose answers are known before
CHECK_ROUND, REPEAT_ROUND = 0, 1  # of every 4 rounds: one checks answers, one repeats inputs
SETTLE_SECONDS = 0.5  # seconds before the known answers are read


@dataclass(frozen=True)
class Clock:
    """A monotonic clock.

    now: seconds.  sync: returns when the device is idle.  wait: sleeps for seconds.
    """

    now: Callable[[], float] = time.perf_counter
    sync: Callable[[], None] = lambda: None
    wait: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Runner:
    """A call that is timed.

    fresh: makes an input from a seed, in new memory.  call: the timed function.  read: the bytes of
    an answer.  touch: forces a lazy answer to be computed.
    """

    name: str
    fresh: Callable[[int], Any]
    call: Callable[[Any], Any]
    read: Callable[[Any], bytes]
    touch: Callable[[Any], None] = lambda answer: None


@dataclass
class Timing:
    """Samples of one runner, in seconds.

    samples: calls on new inputs.  firsts, repeats: calls on a new input, and on that input again.
    warm: number of warm-up calls.  short: each sample follows an untimed call, since other runners
    have filled the processor's caches.  seen: (number of the known input, digest of its answer).
    unstable: the warm-up did not settle, or the samples drift.  wrong: why answers are invalid.
    """

    samples: list[float] = field(default_factory=list)
    repeats: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)  # the calls that were repeated
    warm: int = 0
    short: bool = False
    seen: list[tuple[int, str]] = field(default_factory=list)
    unstable: bool = False
    wrong: str = ""


def timed(runner: Runner, x: Any, clock: Clock) -> tuple[float, Any]:
    """(seconds, answer) of one call, with the device idle before and after it."""
    clock.sync()
    start = clock.now()
    answer = runner.call(x)
    runner.touch(answer)
    clock.sync()
    return clock.now() - start, answer


def warm_up(
    call: Callable[[], float], *, most_calls: int = 100, most_seconds: float = 10.0
) -> tuple[int, bool]:
    """(number of calls, settled): calls until the last 5 medians agree within 5%."""
    calls, spent, medians = 0, 0.0, list[float]()
    while True:
        group: list[float] = []
        while len(group) < CALLS and (not group or group[-1] < SHORT):
            group.append(call())
        calls, spent = calls + len(group), spent + sum(group)
        medians = [*medians, median(group)][-MEDIANS:]
        if len(medians) == MEDIANS and max(medians) <= (1 + TOLERANCE) * min(medians):
            return calls, True
        if calls >= most_calls or (spent > most_seconds and len(medians) == MEDIANS):
            return calls, False


def measure(
    runners: Sequence[Runner], *, samples: int, clock: Clock | None = None, seed: int = 0,
    on_start: Callable[[int], None] = lambda i: None, warm_seconds: float = 10.0,
) -> list[Timing | Exception]:  # fmt: skip
    """Times runners, interleaved.

    Args:
        runners: the calls.
        samples: number of rounds.
        clock: default: wall clock of a CPU.
        seed: of inputs and order.
        on_start: receives the index of a runner before each of its calls.
        warm_seconds: limit of a warm-up, beyond which the runner is unstable.

    Returns:
        A timing per runner, or the exception that it raised.
    """
    clock = clock or Clock()
    order, seeds = random.Random(seed), iter(range(seed * 1_000_003 + KNOWN_INPUTS, 2**62))
    timings: list[Timing | Exception] = []
    known: list[list[tuple[Any, Any]]] = []  # per runner: inputs, kept alive, and answers
    for i, runner in enumerate(runners):
        on_start(i)
        known.append([])
        try:
            known[i] += [(x := runner.fresh(k), runner.call(x)) for k in range(KNOWN_INPUTS)]
            timings.append(_warm_up_runner(runner, seeds, clock, warm_seconds))
        except Exception as error:
            timings.append(error)
    for round_ in range(samples):
        order_of_round = list(range(len(runners)))
        order.shuffle(order_of_round)
        for i in order_of_round:
            timing = timings[i]
            if isinstance(timing, Exception):
                continue
            on_start(i)
            try:
                _sample(runners[i], timing, round_, seeds, clock)
            except Exception as error:
                timings[i] = error
    clock.sync()
    clock.wait(SETTLE_SECONDS)
    for runner, timing, pairs in zip(runners, timings, known, strict=True):
        if isinstance(timing, Timing):
            _verify(runner, timing, pairs)
    return timings


def _warm_up_runner(
    runner: Runner, seeds: Iterator[int], clock: Clock, most_seconds: float
) -> Timing:
    seconds: list[float] = []

    def call_once() -> float:
        seconds.append(timed(runner, runner.fresh(next(seeds)), clock)[0])
        return seconds[-1]

    calls, settled = warm_up(call_once, most_seconds=most_seconds)
    return Timing(warm=calls, unstable=not settled, short=median(seconds[-CALLS:]) < SHORT)


def _sample(
    runner: Runner, timing: Timing, round_: int, seeds: Iterator[int], clock: Clock
) -> None:
    check = round_ % 4 == CHECK_ROUND
    known_input = (round_ // 4) % KNOWN_INPUTS
    warm_input = runner.fresh(next(seeds)) if timing.short else None
    x = runner.fresh(known_input if check else next(seeds))
    if timing.short:
        timed(runner, warm_input, clock)
    seconds, answer = timed(runner, x, clock)
    if check:
        timing.seen.append((known_input, _digest(runner, answer)))
    timing.samples.append(seconds)
    if round_ % 4 == REPEAT_ROUND:  # never an input that was known before
        timing.firsts.append(seconds)
        timing.repeats.append(timed(runner, x, clock)[0])


def _verify(runner: Runner, timing: Timing, known: Sequence[tuple[Any, Any]]) -> None:
    """Marks a timing as wrong if a timed answer differs from the answer computed before, and as
    unstable if the medians of the two halves of its samples differ."""
    expected = [_digest(runner, answer) for _, answer in known]
    if any(digest != expected[known_input] for known_input, digest in timing.seen):
        timing.wrong = "the answer while it was timed is not the answer without a clock"
    half = len(timing.samples) // 2
    if half >= 3:
        early, late = median(timing.samples[:half]), median(timing.samples[-half:])
        timing.unstable |= max(early, late) > (1 + TOLERANCE) * min(early, late)


def _digest(runner: Runner, answer: Any) -> str:
    return hashlib.sha256(runner.read(answer)).hexdigest()
