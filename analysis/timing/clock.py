"""Seconds of a call, taken so that they survive doubt.

Every call ends when the device is done and its answer can be read.  Entries are warmed up until
their times agree, then run in a new random order in every round, on inputs never seen before; some
are run again on the same input, and some answers are compared with those made without a clock,
which are read last of all, when whatever was put off is done.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

AGREE, GROUPS = 0.05, 5  # the last 5 medians within 5%
SHORT, CALLS = 0.05, 5  # a median is of up to 5 calls, of one where it takes 0.05 s
KNOWN = 2  # inputs whose answers are known before
CHECK, REPEAT = 0, 1  # of every 4 rounds, the one that checks answers, the one that repeats
PATIENCE = 0.5  # seconds before the known answers are read


@dataclass(frozen=True)
class Clock:
    """now: seconds that only grow.  sync: returns when the device has nothing left to do.
    wait: lets seconds pass."""

    now: Callable[[], float] = time.perf_counter
    sync: Callable[[], None] = lambda: None
    wait: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Runner:
    """What is timed.

    fresh: an input from a seed, new memory every time.  call: what the clock sees.
    read: the bytes of an answer.  touch: makes an answer that was put off be computed.
    """

    name: str
    fresh: Callable[[int], Any]
    call: Callable[[Any], Any]
    read: Callable[[Any], bytes]
    touch: Callable[[Any], None] = lambda answer: None


@dataclass
class Timing:
    """Seconds of the calls on new inputs, and of some on the same input again.

    warm: calls before.  short: a call follows one that is not counted, since caches held what ran
    before.  seen: digests of answers to known inputs, by the number of the input.  unstable: the
    warm-up did not settle, or the samples drift.  wrong: why the answers cannot be believed.
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
    """(seconds, answer) of one call: nothing pending before, nothing pending after."""
    clock.sync()
    start = clock.now()
    answer = runner.call(x)
    runner.touch(answer)
    clock.sync()
    return clock.now() - start, answer


def warm_up(
    call: Callable[[], float], *, most_calls: int = 100, most_seconds: float = 10.0
) -> tuple[int, bool]:
    """(calls, settled): calls until the last 5 medians agree within 5%."""
    calls, spent, medians = 0, 0.0, list[float]()
    while True:
        group: list[float] = []
        while len(group) < CALLS and (not group or group[-1] < SHORT):
            group.append(call())
        calls, spent = calls + len(group), spent + sum(group)
        medians = [*medians, median(group)][-GROUPS:]
        if len(medians) == GROUPS and max(medians) <= (1 + AGREE) * min(medians):
            return calls, True
        if calls >= most_calls or (spent > most_seconds and len(medians) == GROUPS):
            return calls, False


def measure(
    runners: Sequence[Runner], *, samples: int, clock: Clock | None = None, seed: int = 0,
    said: Callable[[int], None] = lambda i: None, warm_seconds: float = 10.0,
) -> list[Timing | Exception]:  # fmt: skip
    """One Timing per runner, or what it raised.

    said: told the number of each before it runs.  warm_seconds: how long the warm-up of each may
    take before it is given up as unstable.
    """
    clock = clock or Clock()
    order, seeds = random.Random(seed), iter(range(seed * 1_000_003 + KNOWN, 2**62))
    found: list[Timing | Exception] = []
    known: list[list[tuple[Any, Any]]] = []  # per runner: inputs, kept alive, and answers
    for i, runner in enumerate(runners):
        said(i)
        known.append([])
        try:
            known[i] += [(x := runner.fresh(k), runner.call(x)) for k in range(KNOWN)]
            found.append(_warmed(runner, seeds, clock, warm_seconds))
        except Exception as error:
            found.append(error)
    for round_ in range(samples):
        turn = list(range(len(runners)))
        order.shuffle(turn)
        for i in turn:
            own = found[i]
            if isinstance(own, Exception):
                continue
            said(i)
            try:
                _sample(runners[i], own, round_, seeds, clock)
            except Exception as error:
                found[i] = error
    clock.sync()
    clock.wait(PATIENCE)
    for runner, own, pairs in zip(runners, found, known, strict=True):
        if isinstance(own, Timing):
            _doubt(runner, own, pairs)
    return found


def _warmed(runner: Runner, seeds: Iterator[int], clock: Clock, most_seconds: float) -> Timing:
    took: list[float] = []

    def once() -> float:
        took.append(timed(runner, runner.fresh(next(seeds)), clock)[0])
        return took[-1]

    calls, settled = warm_up(once, most_seconds=most_seconds)
    return Timing(warm=calls, unstable=not settled, short=median(took[-CALLS:]) < SHORT)


def _sample(runner: Runner, own: Timing, round_: int, seeds: Iterator[int], clock: Clock) -> None:
    check = round_ % 4 == CHECK
    which = (round_ // 4) % KNOWN
    before = runner.fresh(next(seeds)) if own.short else None
    x = runner.fresh(which if check else next(seeds))
    if own.short:
        timed(runner, before, clock)
    seconds, answer = timed(runner, x, clock)
    if check:
        own.seen.append((which, _digest(runner, answer)))
    own.samples.append(seconds)
    if round_ % 4 == REPEAT:  # never an input that was known before
        own.firsts.append(seconds)
        own.repeats.append(timed(runner, x, clock)[0])


def _doubt(runner: Runner, own: Timing, known: Sequence[tuple[Any, Any]]) -> None:
    """Wrong are answers that were others without a clock.  Unstable, too, are samples whose later
    half is not like the earlier one."""
    right = [_digest(runner, answer) for _, answer in known]
    if any(digest != right[which] for which, digest in own.seen):
        own.wrong = "the answer while it was timed is not the answer without a clock"
    half = len(own.samples) // 2
    if half >= 3:
        early, late = median(own.samples[:half]), median(own.samples[-half:])
        own.unstable |= max(early, late) > (1 + AGREE) * min(early, late)


def _digest(runner: Runner, answer: Any) -> str:
    return hashlib.sha256(runner.read(answer)).hexdigest()
