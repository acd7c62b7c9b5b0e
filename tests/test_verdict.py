"""When "faster" may be said: the exact test, the rule, its errors in simulation, the interval."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.results import statistics
from analysis.results.statistics import Summary, compare_medians, interval, mann_whitney, summarise

PAIRS = 200


def side(chance: random.Random, factor: float = 1.0, processes: int = 10, samples: int = 10):
    """Simulated seconds: samples scatter by 5%, processes drift by 3%."""
    drifts = [max(0.5, chance.gauss(1, 0.03)) for _ in range(processes)]
    return [
        [factor * drift * max(0.5, chance.gauss(1, 0.05)) for _ in range(samples)]
        for drift in drifts
    ]


# -- the test --------------------------------------------------------------------------------


def by_hand(a, b) -> float:
    """The definition: of all ways to share out the ranks, those at least as one-sided."""
    every = sorted([*a, *b])
    rank = {v: sum(u < v for u in every) + (every.count(v) + 1) / 2 for v in every}
    seen = sum(rank[v] for v in a)
    ranks = [rank[v] for v in every]
    sums = [sum(c) for c in itertools.combinations(ranks, len(a))]
    low, high = sum(s <= seen for s in sums), sum(s >= seen for s in sums)
    return min(1.0, 2 * min(low, high) / len(sums))


@given(*[st.lists(st.integers(0, 5), min_size=1, max_size=5)] * 2)
def test_p_is_exact_also_with_ties(a, b):
    assert mann_whitney(a, b) == pytest.approx(by_hand(a, b), abs=1e-12)


def test_p_of_ten_against_ten():
    """Fully apart: two of the 184,756 ways.  Beyond 40 values the normal one is close."""
    assert mann_whitney(range(10), range(10, 20)) == pytest.approx(2 / 184_756)
    chance = random.Random(0)
    a, b = ([chance.gauss(i / 2, 1) for _ in range(20)] for i in (0, 1))
    exact, wide = mann_whitney(a, b), mann_whitney([*a, 99.0], [*b, -99.0])
    assert 0.2 < exact / wide < 5 and mann_whitney([1.0] * 30, [1.0] * 30) == 1


# -- the rule --------------------------------------------------------------------------------


def different(factor: float, rule=compare_medians, pairs: int = PAIRS) -> int:
    chance = random.Random(7)
    words = [rule(side(chance, factor), side(chance)).word for _ in range(pairs)]
    return words.count("slower") + (words.count("faster") if factor == 1 else 0)


def test_the_same_twice_is_different_in_one_of_a_hundred():
    assert different(1.0) <= 0.01 * PAIRS
    assert different(1.0, pairs=10 * PAIRS) <= 0.01 * 10 * PAIRS


def test_ten_percent_slower_is_found():
    assert different(1.1) >= 0.9 * PAIRS


def test_samples_taken_for_processes_would_be_wrong():
    """Negative control: without medians per process, a drift of 3% is a difference."""

    def careless(a, b):
        return compare_medians([[s] for p in a for s in p], [[s] for p in b for s in p])

    assert different(1.0, careless) > 0.05 * PAIRS


@pytest.mark.parametrize(
    ("factor", "processes", "word", "why"),
    [
        (1.5, 10, "slower", ""), (1 / 1.5, 10, "faster", ""), (1.5, 9, "inconclusive", "9 of 10"),
        (1.02, 10, "inconclusive", "under 3%"), (1.0, 10, "inconclusive", "p ="),
    ],
)  # fmt: skip
def test_what_is_said_and_why(factor, processes, word, why):
    """Nine processes, and 2% however sure, are not enough; "the same" is never said."""
    spread = [[1 + 1e-6 * i] for i in range(processes)]
    found = compare_medians([[factor * s] for (s,) in spread], spread[::-1])
    assert found.word == word and found.why.startswith(why)
    assert found.ratio == pytest.approx(1 / factor, rel=1e-4)


# -- summaries -------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), min_size=1, max_size=12))
def test_a_summary_has_its_spread(processes):
    found = summarise(processes)
    every = [s for p in processes for s in p]
    assert (found.n, found.processes) == (len(every), len(processes))
    assert min(every) <= found.low <= found.median <= found.high <= max(every)
    assert 0 <= found.level <= 1 and found.p95 in every


@pytest.mark.parametrize(("n", "p95"), [(1, 1), (10, 10), (19, 19), (20, 19), (100, 95), (101, 96)])
def test_the_95th_percentile_is_the_least_value_that_so_many_do_not_exceed(n, p95):
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    assert summarise([values]).p95 == p95


def test_no_median_stands_alone():
    with pytest.raises(TypeError):
        Summary(median=1.0)  # type: ignore[call-arg]
    whole = asdict(summarise([[1.0, 2.0]]))
    assert set(whole) == {"n", "processes", "median", "iqr", "low", "high", "level", "p95"}
    with pytest.raises(AssertionError):
        Summary(**{**whole, "high": 0.0})


@pytest.mark.parametrize(("n", "level"), [(8, 0.99), (10, 0.99), (40, 0.99), (5, 0.9375)])
def test_the_interval_covers_the_median(n, level):
    """As often as it says, and 99% where that is possible."""
    low, high, stated = interval([float(i) for i in range(n)])
    assert stated >= level and (low, high) == (n - 1 - high, high)
    chance = random.Random(1)
    hits = 0
    for _ in range(2000):
        low, high, _ = interval([chance.random() for _ in range(n)])
        hits += low <= 0.5 <= high
    assert hits / 2000 == pytest.approx(stated, abs=0.02)


def test_a_cache_is_told_from_noise():
    """Far faster on what was seen before is a cache, also with few; 5% or one late is not."""
    assert statistics.cached([1.0, 1.1, 1.0], [0.1, 0.1, 0.15]) > 5
    assert not statistics.cached([1.0, 1.1, 1.0], [0.4, 0.4, 0.3])
    again = [1 + i / 100 for i in range(9)]
    assert statistics.cached([1.2 + i / 100 for i in range(9)], again) > 1.1
    assert not statistics.cached([1.05 + i / 100 for i in range(9)], again)
    assert not statistics.cached([1.0, 3.0, 1.0], [1.0, 1.0, 1.01])
    assert not statistics.cached([5.0], [1.0]) and not statistics.cached([], [])
