"""The verdict on a training comparison: several backbones, each trained over several seeds.

The rule was stated before any run.  A backbone is better than another with at least 7 seeds on
both sides, p < 0.002 in the exact two-sided Mann-Whitney test, and Holm's adjusted p < 0.05 over
the family of pairs; everything else is inconclusive.  p < 0.002 is the limit of a pair and Holm's
bounds the errors of a family: 7 seeds reach p = 0.0006 at best, so Holm's p < 0.002 could never
be reached among 8 backbones.  Pairing by seed is measured, and never used by the verdict.

A run that diverged counts: the caller gives it the accuracy 1 / classes, and no bit set in
`correct`; a run that misses its target takes math.inf steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, correlation, fmean

import numpy as np

from analysis.results.statistics import P, mann_whitney
from training.intervals import DRAWS, LEVEL, Interval, Runs, interval, means, quantiles
from transom.errors import SpecError, nearest, one_line

__all__ = ["Comparison", "Interval", "Runs", "compare", "holm", "interval", "judge", "pairing"]

SEEDS, FAMILY, POWER = 7, 0.05, 0.8
TINY = 1e-9  # a difference or spread that is rounding


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Verdict on two backbones.

    word: better, worse or inconclusive, of the left one.  difference: left minus right, of mean
    accuracies or of median steps (nan if both medians are inf), with a 95% interval low to high,
    which is over images alone on a side of one seed, and unbounded where seeds are too few for
    one.  p: of the pair.  holm: adjusted for the family.  why: what is missing, "" for a verdict.
    seeds_needed: seeds a side for a verdict with 80% power at this difference and spread, None
    if unknown or where p is low enough.  correlation: of the scores by seed, None if unknown.

    Example:
        >>> from training.judge import Runs, compare
        >>> left, right = (Runs(name=name, seeds=(0, 1), scores=(0.5, 0.6)) for name in "ab")
        >>> compare(left, right).why
        '2 of 7 seeds'
    """

    left: str
    right: str
    word: str
    difference: float
    low: float
    high: float
    p: float
    holm: float
    why: str
    seeds_needed: int | None
    correlation: float | None


def compare(left: Runs, right: Runs, higher: bool = True) -> Comparison:
    """Verdict on two backbones by the module's rule, as a family of one pair.

    Args:
        left: the backbone that the word is of.
        right: the backbone that it is compared with.
        higher: True if higher scores are better; False for steps to a target.

    Returns:
        Comparison, mirrored if the sides are exchanged.

    Raises:
        SpecError: accuracies against steps, steps with higher=True, or other numbers of images.

    Source: Mann and Whitney 1947, On a Test of Whether One of Two Random Variables is Larger.

    Example:
        >>> from training.judge import Runs, compare
        >>> seeds = tuple(range(7))
        >>> pale = Runs(name="pale", seeds=seeds, scores=(100, 100, 100, 100, 125, 125, 150))
        >>> mlp = Runs(name="token_mlp", seeds=seeds, scores=(200, 200, 200, 250, 250, 300, 450))
        >>> found = compare(pale, mlp, higher=False)
        >>> found.word, round(found.p, 4), found.difference
        ('better', 0.0006, -150.0)
    """
    names = f"{one_line(left.name)} and {one_line(right.name)}"
    if left.steps != right.steps:
        raise SpecError(f"{names}: accuracies cannot be compared with steps")
    if left.steps and higher:
        raise SpecError(f"{names}: scores over 1 are steps, fewer are better; give higher=False")
    sizes = [side.correct[0].size for side in (left, right) if side.correct]
    if len(set(sizes)) > 1:
        raise SpecError(f"{names}: {sizes[0]} and {sizes[1]} images; all need the same images")
    p, few = mann_whitney(left.scores, right.scores), min(len(left.seeds), len(right.seeds))
    difference, low, high = _difference(left, right)
    needed = _seeds_needed(left, right, difference)
    lead = sum((a > b) - (a < b) for a in left.scores for b in right.scores)
    why = ""
    if few < SEEDS:
        why = f"{few} of {SEEDS} seeds"
    elif p >= P:
        gap = abs(difference)
        size = f"{gap:.3g} steps" if left.steps else f"{100 * gap:.2g} points"
        tail = f"; about {needed:,} seeds for {size} at this spread" if needed else ""
        why = f"p = {p:.2g}{tail}"
    elif lead * difference < 0:
        why = f"ranks and {'medians' if left.steps else 'means'} disagree"
    return Comparison(
        left=left.name, right=right.name, difference=difference, low=low, high=high, p=p, holm=p,
        word="inconclusive" if why else "better" if (lead > 0) == higher else "worse", why=why,
        seeds_needed=needed if few < SEEDS or p >= P else None, correlation=pairing(left, right)[0],
    )  # fmt: skip


def _difference(left: Runs, right: Runs) -> tuple[float, float, float]:
    """(difference, low, high) of mean accuracies, or of median steps, at 95%."""
    if not left.steps:
        difference, pair = fmean(left.scores) - fmean(right.scores), (left, right)
        one = any(len(side.seeds) == 1 for side in pair)
        if one and not all(side.correct for side in pair):
            return difference, -1.0, 1.0  # nothing to resample on a side
        a, b = means(pair, LEVEL, DRAWS)
        low, high = quantiles(a - b, LEVEL)
        return difference, max(-1.0, min(low, difference)), min(1.0, max(high, difference))
    # each median leaves its own interval with half of the 5%
    level = (1 + LEVEL) / 2
    ours, theirs = interval(left, level), interval(right, level)
    low, high = ours.low - theirs.high, ours.high - theirs.low
    known = min(ours.level, theirs.level) >= level
    return (
        ours.centre - theirs.centre,
        low if known and not math.isnan(low) else -math.inf,
        high if known and not math.isnan(high) else math.inf,
    )


def _seeds_needed(left: Runs, right: Runs, difference: float) -> int | None:
    """Seeds a side for p < 0.002 with 80% power, in the normal approximation.

    n = 2 ((z + z') spread / difference)^2 / (3 / pi) + z^2 / 4, where z is the normal quantile of
    the level, z' that of the power, 3 / pi the efficiency of Mann and Whitney's test, and the
    last term Guenther's for few seeds (1981), without which 2.25 spreads get a power of 0.44.
    """
    few = min(len(left.seeds), len(right.seeds))
    if few < 2 or not all(map(math.isfinite, (*left.scores, *right.scores))):
        return None
    spread = math.sqrt((_variance(left.scores) + _variance(right.scores)) / 2)
    if spread < TINY or abs(difference) < TINY:
        return None
    z, z_power = NormalDist().inv_cdf(1 - P / 2), NormalDist().inv_cdf(POWER)
    many = 2 * ((z + z_power) * spread / difference) ** 2 * math.pi / 3
    return max(SEEDS, few + 1, math.ceil(many + z * z / 4))


def _variance(scores: Sequence[float]) -> float:
    return float(np.var(scores, ddof=1))


# -- families --------------------------------------------------------------------------------


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of every test of a family, in the order given.

    Args:
        ps: one p per test, each in [0, 1].

    Returns:
        Adjusted p, at most 1, test by test.  To call those under 0.05 significant makes an error,
        one or more, in at most 5% of families.

    Raises:
        SpecError: a p outside [0, 1].

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.

    Example:
        >>> from training.judge import holm
        >>> holm([0.25, 0.125, 0.5])
        [0.5, 0.375, 0.5]
    """
    if not all(0 <= p <= 1 for p in ps):
        raise SpecError(f"p-values {one_line(str(list(ps)))}; each must be in 0 to 1")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def judge(
    all_runs: Sequence[Runs], baseline: str | None = None, higher: bool = True,
    all_pairs: bool = False,
) -> list[Comparison]:  # fmt: skip
    """Verdicts on every backbone against a baseline, or on all pairs, as one family.

    Args:
        all_runs: of two or more backbones, whose names differ.
        baseline: name of the right side; default: the first.  Not with all_pairs.
        higher: True if higher scores are better; False for steps to a target.
        all_pairs: every backbone against all after it.

    Returns:
        Comparisons in the order of `all_runs`.

    Raises:
        SpecError: fewer than two backbones, a name twice, no such baseline, or what `compare` says.

    Example:
        >>> from training.judge import Runs, judge
        >>> runs = [Runs(name=name, seeds=(0,), scores=(0.5,)) for name in ("swin_t", "pale_t")]
        >>> [(found.left, found.right, found.word, found.why) for found in judge(runs)]
        [('pale_t', 'swin_t', 'inconclusive', '1 of 7 seeds')]
    """
    named = {runs.name: runs for runs in all_runs}
    if len(named) < max(2, len(all_runs)):
        listed = one_line(", ".join(runs.name for runs in all_runs))
        raise SpecError(f"backbones {listed or 'none'}; give two or more of different names")
    if baseline is not None and (all_pairs or baseline not in named):
        hint = "; all pairs have no baseline" if all_pairs else nearest(baseline, named)
        raise SpecError(f"baseline {one_line(baseline)!r}{hint}", baseline)
    first = named[all_runs[0].name if baseline is None else baseline]
    pairs = [(runs, first) for runs in all_runs if runs is not first]
    if all_pairs:
        pairs = list(itertools.combinations(all_runs, 2))
    found = [compare(left, right, higher) for left, right in pairs]
    adjusted = holm([each.p for each in found])
    return [_in_family(each, p, len(pairs)) for each, p in zip(found, adjusted, strict=True)]


def _in_family(found: Comparison, p: float, pairs: int) -> Comparison:
    if found.why or p < FAMILY:
        return replace(found, holm=p)
    why = f"Holm's p = {p:.2g} over {pairs} pairs"
    return replace(found, holm=p, word="inconclusive", why=why)


def pairing(left: Runs, right: Runs) -> tuple[float | None, float | None, str]:
    """What pairing by seed would do to the spread of the difference; no verdict uses it.

    Args:
        left: of one backbone.
        right: of another one.

    Returns:
        (correlation, ratio, sentence) over the seeds that both have: Pearson's correlation, the
        spread of the paired differences over that of independent sides, and what they mean;
        None and None with under three such seeds, a miss, or a side without spread.

    Example:
        >>> from training.judge import Runs, pairing
        >>> left = Runs(name="pale", seeds=(0, 1, 2), scores=(0.5, 0.6, 0.7))
        >>> pairing(left, Runs(name="swin", seeds=(2, 1, 0), scores=(0.7, 0.5, 0.6)))[2]
        "pairing by seed would narrow the difference's spread by 29% (correlation 0.5)"
    """
    theirs = dict(zip(right.seeds, right.scores, strict=True))
    pairs = [(a, theirs[s]) for s, a in zip(left.seeds, left.scores, strict=True) if s in theirs]
    if len(pairs) < 3 or not all(math.isfinite(a) and math.isfinite(b) for a, b in pairs):
        said = "a seed missed its target" if len(pairs) >= 3 else f"{len(pairs)} seeds in common"
        return None, None, f"pairing by seed is unknown: {said}"
    ours, others = zip(*pairs, strict=True)
    parts = _variance(ours), _variance(others)
    if math.sqrt(min(parts)) < TINY:
        return None, None, "pairing by seed is unknown: a side has no spread"
    together = correlation(ours, others)
    ratio = math.sqrt(_variance([a - b for a, b in pairs]) / sum(parts))
    saved = round(100 * (1 - ratio))
    does = f"would narrow the difference's spread by {saved}%" if saved > 0 else "does not help"
    return together, ratio, f"pairing by seed {does} (correlation {together:.1f})"
