"""Scores of a backbone over seeds, and intervals that say how far they scatter."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median

import numpy as np
import numpy.typing as npt

from analysis.results.statistics import interval as median_interval
from transom.errors import SpecError, one_line

LEVEL, DRAWS = 0.95, 2000
AGREE = 1e-3  # between an accuracy, which may be rounded, and the mean of its bits
CHUNK = 1 << 20  # image weights held at once
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Results of one backbone: one score per seed, and optionally one bit per test image.

    Args:
        name: of the backbone.
        seeds: all different; their order is of no consequence.
        scores: per seed, the accuracy in [0, 1], or the steps to a target from 1 on, math.inf for
            a miss.  Scores none of which is over 1 are accuracies.
        correct: per seed, (images,) bools, of the same images in the same order for all
            backbones; their mean is the accuracy, unless none is set.  Unused for steps.

    Raises:
        SpecError: no seed, a seed twice, or scores or bits that do not fit; it says which.

    Example:
        >>> from training.judge import Runs
        >>> Runs(name="pale", seeds=(0, 1, 2), scores=(100.0, 125.0, float("inf"))).steps
        True
    """

    name: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    correct: tuple[npt.NDArray[np.bool_], ...] | None = None

    def __post_init__(self) -> None:
        if fault := self._fault():
            raise SpecError(f"{one_line(self.name)}: {fault}", self.name)

    def _fault(self) -> str:
        scores, bits = self.scores, self.correct
        twice = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if not self.seeds or twice:
            return f"seed {twice[0]} twice" if twice else "no seeds; give one score per seed"
        if len(scores) != len(self.seeds):
            return f"{len(scores)} scores for {len(self.seeds)} seeds"
        if not (all(0 <= score <= 1 for score in scores) or all(score >= 1 for score in scores)):
            return f"scores {min(scores)} to {max(scores)}; accuracies are 0 to 1, steps 1 or more"
        if bits is None:
            return ""
        if len(bits) != len(scores) or any(b.ndim != 1 or b.dtype != np.bool_ for b in bits):
            return f"correct must be {len(scores)} one-dimensional arrays of bools, one per seed"
        sizes = sorted({b.size for b in bits})
        if len(sizes) > 1 or sizes[0] == 0:
            return f"seeds with {sizes[0]} and {sizes[-1]} images; all need the same images"
        for seed, score, b in zip(self.seeds, scores, bits, strict=True):
            if not self.steps and b.any() and abs(b.mean() - score) > AGREE:
                return f"seed {seed} has the accuracy {score}, its images say {b.mean():.4g}"
        return ""

    @property
    def steps(self) -> bool:
        """True if the scores are steps to a target."""
        return max(self.scores) > 1

    @property
    def by_seed(self) -> list[int]:
        """Positions of the seeds in ascending order."""
        return sorted(range(len(self.seeds)), key=self.seeds.__getitem__)

    @property
    def digest(self) -> bytes:
        """Hash of everything but the name and the order of the seeds."""
        found = hashlib.sha256()
        for i in self.by_seed:
            found.update(f"{self.seeds[i]} {float(self.scores[i]).hex()}".encode())
            found.update(np.packbits(self.correct[i]).tobytes() if self.correct else b"")
        return found.digest()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A centre and the bounds of an interval around it; unpacks as (centre, low, high).

    over: what was resampled: "seeds and images", "seeds", "images" (one seed: the interval says
    nothing of other seeds), or "nothing" (all values are possible).  level: the coverage.

    Example:
        >>> from training.judge import Runs, interval
        >>> interval(Runs(name="pale", seeds=(0,), scores=(200.0,)))
        Interval(centre=200.0, low=1.0, high=inf, over='nothing', level=0.95)
    """

    centre: float
    low: float
    high: float
    over: str
    level: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.centre, self.low, self.high))


def interval(runs: Runs, level: float = LEVEL, draws: int = DRAWS) -> Interval:
    """Interval of the mean accuracy, or of the median steps, of a backbone.

    For accuracies by a bootstrap over seeds and images together, crossed: a draw has one sample
    of the images for all its seeds.  Deviations over n seeds are widened by sqrt(n / (n - 1)) and
    Student's t over the normal quantile, since a plain bootstrap of few is too narrow.  Chance
    that is of neither seed nor image counts more than once, so the interval is rather too wide.
    For steps by order statistics, whose coverage is in `level`.  The same runs give the same bits.

    Args:
        runs: of one backbone.
        level: the coverage that is asked for, between 0 and 1.
        draws: of the bootstrap, 100 or more.

    Returns:
        Interval; `over` says "images" for one seed.

    Raises:
        SpecError: level or draws out of range.

    Source: Owen 2007, The pigeonhole bootstrap; Hesterberg 2015, What Teachers Should Know about
    the Bootstrap (small samples).

    Example:
        >>> from math import inf
        >>> from training.judge import Runs, interval
        >>> steps = (175.0, 250.0, 275.0, 275.0, 300.0, inf, inf)
        >>> centre, low, high = interval(Runs(name="cross", seeds=tuple(range(7)), scores=steps))
        >>> centre, low, high
        (275.0, 175.0, inf)
    """
    if not 0 < level < 1 or draws < 100:
        raise SpecError(f"level {level}, draws {draws}; level is within 0 to 1, draws 100 or more")
    one = len(runs.seeds) == 1
    if runs.steps:
        centre, over = float(median(runs.scores)), "nothing" if one else "seeds"
        low, high, reached = (1.0, math.inf, level) if one else median_interval(runs.scores, level)
        return Interval(centre=centre, low=low, high=high, over=over, level=reached)
    centre = fmean(runs.scores)
    if one and not runs.correct:
        return Interval(centre=centre, low=0.0, high=1.0, over="nothing", level=level)
    low, high = quantiles(means([runs], level, draws)[0], level)
    over = ("images" if one else "seeds and images") if runs.correct else "seeds"
    low, high = max(0.0, min(low, centre)), min(1.0, max(high, centre))
    return Interval(centre=centre, low=low, high=high, over=over, level=level)


def quantiles(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def means(sides: Sequence[Runs], level: float, draws: int) -> list[Floats]:
    """Resampled mean accuracies, (draws,) a side: seeds per side, images once for all sides."""
    order = sorted(range(len(sides)), key=lambda i: (sides[i].digest, sides[i].name))
    content = hashlib.sha256(b"".join(sides[i].digest for i in order)).digest()
    chance = np.random.default_rng(int.from_bytes(content[:16], "big"))
    picks, found = {}, {}
    for i in order:
        n, scores = len(sides[i].seeds), np.array(sides[i].scores)[sides[i].by_seed]
        picks[i] = chance.integers(n, size=(draws, n))
        moved = scores[picks[i]].mean(1) - scores.mean()
        found[i] = scores.mean() + (_widening(n, level) if n > 1 else 1.0) * moved
    if all(side.correct for side in sides):
        tables = [np.array(side.correct)[side.by_seed] for side in sides]  # (seeds, images)
        images = tables[0].shape[1]
        for start in range(0, draws, step := max(1, CHUNK // images)):
            part = slice(start, min(draws, start + step))
            rows = np.arange(part.stop - start)[:, None]
            sample = chance.integers(images, size=(len(rows), images)) + images * rows
            weights = np.bincount(sample.ravel(), minlength=sample.size).reshape(sample.shape)
            for i, table in enumerate(tables):
                shares = (weights.astype(np.float32) @ table.T.astype(np.float32)) / images
                moved = shares - table.mean(1)  # (draws, seeds): what this sample changes
                found[i][part] += np.take_along_axis(moved, picks[i][part], axis=1).mean(1)
    return [found[i] for i in range(len(sides))]


@functools.cache
def _widening(n: int, level: float) -> float:
    """How much wider n seeds' deviations are than a bootstrap shows them.

    With t = sqrt(n - 1) tan(a), the density of Student's t is cos(a) ** (n - 2).
    """
    edges = np.linspace(0, math.pi / 2, 20_001)
    area = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (n - 2))
    t = math.sqrt(n - 1) * math.tan(np.interp(level * area[-1], [0.0, *area], edges))
    return t / NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(n / (n - 1))
