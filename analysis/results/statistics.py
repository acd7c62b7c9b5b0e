"""The rule by which one measurement is called faster than another.

The medians of at least 10 processes a side must differ by the Mann-Whitney test (exact,
two sides, p < 0.002) and by at least 3%.  Everything else is inconclusive; no two are called equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median, quantiles

PROCESSES, P, LEAST = 10, 0.002, 0.03
LEVEL = 0.99  # of the interval of a median
REPEATED = 1.10  # time of a new input over that of a repeated one, beyond which answers are cached


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Seconds of one measurement: the median with its n, processes and spread.

    iqr: the middle half of all samples.  low, high: an interval that covers the median with
    probability `level`, which is under 0.99 where there are too few samples for it.
    """

    n: int
    processes: int
    median: float
    iqr: float
    low: float
    high: float
    level: float
    p95: float

    def __post_init__(self) -> None:
        assert self.n >= self.processes >= 1
        assert self.low <= self.median <= self.high and self.iqr >= 0


def summarise(processes: Sequence[Sequence[float]]) -> Summary:
    """The median of the processes' medians, and its spread.

    processes: samples in seconds, per process.

    The interval is of the processes' medians, where eight or more make 99% possible; of all
    samples otherwise, which says nothing of how processes differ.
    """
    medians = [median(samples) for samples in processes]
    pooled = sorted(value for samples in processes for value in samples)
    middle = median(medians)
    low, high, level = interval(medians if len(medians) >= 8 else pooled)
    quarters = quantiles(pooled, n=4, method="inclusive") if len(pooled) > 1 else pooled * 3
    p95 = pooled[min(len(pooled) - 1, math.ceil(0.95 * len(pooled)) - 1)]
    return Summary(
        n=len(pooled), processes=len(medians), median=middle, iqr=quarters[2] - quarters[0],
        low=min(low, middle), high=max(high, middle), level=level, p95=p95,
    )  # fmt: skip


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """(low, high, coverage): the narrowest pair of order statistics that covers the median with
    at least `level`, or the extremes and their coverage."""
    ordered, n = sorted(values), len(values)
    outside = 0.0  # P(fewer than k of n values lie under the median)
    best = 0
    for k in range(1, (n + 1) // 2 + 1):
        outside += math.comb(n, k - 1) * 0.5**n
        if 1 - 2 * outside < level:
            break
        best = k
    k = max(best, 1)
    missed = sum(math.comb(n, i) for i in range(k)) * 0.5**n
    return ordered[k - 1], ordered[n - k], max(0.0, 1 - 2 * missed)


# -- the test --------------------------------------------------------------------------------


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p of Mann and Whitney 1947, exact with ties too (normal beyond 40 values)."""
    pooled = sorted((*a, *b))
    # twice the mean rank: a whole number where values tie, too
    doubled_rank = {v: 2 * pooled.index(v) + pooled.count(v) + 1 for v in set(pooled)}
    ranks = tuple(doubled_rank[value] for value in pooled)
    rank_sum = sum(doubled_rank[value] for value in a)
    if len(pooled) > 40:
        mean = len(a) * (len(pooled) + 1)
        spread = sum((rank - len(pooled) - 1) ** 2 for rank in ranks) / (len(pooled) - 1)
        sigma = math.sqrt(len(a) * len(b) / len(pooled) * spread)
        if sigma == 0:
            return 1.0
        return min(1.0, 2 * (1 - NormalDist().cdf((abs(rank_sum - mean) - 1) / sigma)))
    counts = _sums(ranks, len(a))
    total = math.comb(len(pooled), len(a))
    under = sum(count for value, count in counts.items() if value <= rank_sum)
    over = sum(count for value, count in counts.items() if value >= rank_sum)
    return min(1.0, 2 * min(under, over) / total)


@functools.lru_cache(maxsize=64)
def _sums(ranks: tuple[int, ...], n: int) -> dict[int, int]:
    """Number of choices of n ranks, by their sum."""
    counts: list[dict[int, int]] = [{0: 1}, *({} for _ in range(n))]
    for rank in ranks:
        for size in range(n, 0, -1):
            for value, count in counts[size - 1].items():
                counts[size][value + rank] = counts[size].get(value + rank, 0) + count
    return counts[n]


# -- comparison ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MedianComparison:
    """Result of `compare_medians`.

    word: faster, slower or inconclusive, of the first side.  ratio: the second median over the
    first.  p: of the test.  why: the condition that failed.
    """

    word: str
    ratio: float
    p: float
    why: str = ""


def compare_medians(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> MedianComparison:
    """Compares two sides by the medians of their processes (samples in seconds, per process)."""
    a, b = ([median(samples) for samples in side] for side in (ours, theirs))
    ratio, p = median(b) / median(a), mann_whitney(a, b)
    fewest = min(len(a), len(b))
    why = ""
    if fewest < PROCESSES:
        why = f"{fewest} of {PROCESSES} processes"
    elif p >= P:
        why = f"p = {p:.2g}"
    elif max(ratio, 1 / ratio) < 1 + LEAST:
        why = f"under {LEAST:.0%}"
    word = "inconclusive" if why else "faster" if ratio > 1 else "slower"
    return MedianComparison(word=word, ratio=ratio, p=p, why=why)


def cached(new: Sequence[float], again: Sequence[float]) -> float:
    """Median time of new inputs over that of repeated inputs, where it is over 1.10 and significant
    (by the Mann-Whitney test, or 5 times beyond any overlap); else 0.0."""
    if len(new) < 2 or len(again) < 2:
        return 0.0
    ratio = median(new) / max(median(again), 1e-12)
    clear = mann_whitney(new, again) < P or min(new) > 5 * max(again)
    return ratio if ratio > REPEATED and clear else 0.0
