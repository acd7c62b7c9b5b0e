"""From stored rows to lines of a table: medians with their spread, shares, and fair ratios."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from analysis.results import statistics
from analysis.results.environment import lasting
from analysis.results.measurement import Entry, canonical, from_dict, key_of
from analysis.results.statistics import Summary

Row = dict[str, Any]
SAME = 1e-5  # of the largest logit, float32: the same weights and the same mathematics
TRAIN = 3  # forward, and two products backward for each forward
PAIRED = ("mode", "dtype", "layout", "device", "malloc", "size")
PAIRED_PLACES = (
    "threads", "tf32", "deterministic", "processor", "cores_usable", "governor", "gpu", "python",
    "torch", "code",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line:
    """All that is known of one entry in one group on one machine.

    status: ok, failed or invalid, with the reason.  times: seconds, by the process.  share: of the
    machine's own best matrix product in the same processes.  unstable: processes that were.
    """

    entry: Entry
    group: str
    environment: Mapping[str, Any]
    status: str
    reason: str
    times: Mapping[int, Sequence[float]]
    summary: Summary | None
    batch: int
    compiled: str
    macs: int | None
    share: float | None
    peak_bytes: float | None
    growth_bytes: float | None
    logits_error: float | None
    unstable: int
    note: str
    split: Sequence[Row] = ()

    @property
    def usable(self) -> bool:
        return self.status == "ok"

    @property
    def well(self) -> bool:
        """Was all of it measured, and are the answers those of ours?"""
        return self.usable and not self.note and (self.logits_error or 0.0) <= SAME


def lines(rows: Iterable[Row]) -> list[Line]:
    """One line per entry, group and machine, in the order of first appearance.

    Of two rows with one key the first counts.  Products of matrices are the measure, not lines.
    """
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    seen: set[str] = set()
    rates: defaultdict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    places: dict[str, str] = {}
    for row in rows:
        if "config" not in row or "group" not in row or str(row.get("key")) in seen:
            continue
        seen.add(str(row.get("key")))
        config = canonical(row["config"])
        if "environment" in row:
            place = key_of(lasting(row["environment"]))
            places.setdefault(row["group"], place)
        else:  # a process that died has said nothing of where it was
            place = places.get(row["group"], "")
        grouped.setdefault((row["group"], place, config), []).append(row)
        if row["config"]["kind"] == "matmul" and row.get("status") == "ok":
            rate = 2 * row["macs"] / median(row["samples"])
            rates[row["group"], place, row["config"]["dtype"], row["process"]].append(rate)
    found = []
    for (group, place, _), own in grouped.items():
        if own[0]["config"]["kind"] != "matmul":
            here = group, place, own[0]["config"]["dtype"]
            best = {key[3]: max(rate) for key, rate in rates.items() if key[:3] == here}
            found.append(_line(group, own, best))
    return found


def _line(group: str, rows: Sequence[Row], peaks: Mapping[int, float]) -> Line:
    entry = from_dict(rows[0]["config"])
    timed = [row for row in rows if row["kind"] == "time"]
    good = [row for row in timed if row["status"] == "ok"]
    memory = [row for row in rows if row["kind"] == "memory"]
    held = [row for row in memory if row["status"] == "ok"]
    invalid = [row for row in timed if row["status"] == "invalid"]
    failed = [row for row in timed if row["status"] == "failed"]
    if invalid:
        status, reason = "invalid", invalid[0]["reason"]
    elif failed and not good:
        status, reason = "failed", failed[0]["reason"]
    else:
        status, reason = ("ok" if good else "failed"), "" if good else "was not timed"
    shown = good or invalid
    seconds = {name: [s for row in shown for s in row[name]] for name in ("firsts", "repeats")}
    if ratio := statistics.cached(seconds["firsts"], seconds["repeats"]):
        why = f"a new input takes {ratio:.3g} times as long as one seen before"
        status, reason = "invalid", reason or why
    times = {row["process"]: row["samples"] for row in shown}
    first = shown[0] if shown else rows[0]
    batch = min((row["batch_used"] for row in shown), default=entry.batch)
    macs = first.get("macs")
    notes = [f"{len(failed)} of {len(timed)} processes failed"] if failed and good else []
    if memory and not held:
        notes.append(f"memory: {memory[0]['reason']}")
    split: list[Row] = []
    for row in rows:
        if row["kind"] == "split" and row["status"] == "ok":
            split = row["split"]
        elif row["kind"] == "split":
            notes.append(f"split: {row['reason']}")
    work = 2 * (macs or 0) * batch * (TRAIN if entry.mode == "train" else 1)
    shares = [work / median(times[p]) / peak for p, peak in peaks.items() if p in times]
    return Line(
        entry=entry, group=group, environment=first.get("environment", {}), status=status,
        reason=reason, times=times,
        summary=statistics.summarise(list(times.values())) if times else None,
        batch=batch, compiled=_one({row.get("compiled", "off") for row in shown}), macs=macs,
        share=median(shares) if shares and macs and status == "ok" else None,
        peak_bytes=median(row["peak_bytes"] for row in held) if held else None,
        growth_bytes=median(row["growth_bytes"] for row in held) if held else None,
        logits_error=max((row["logits_error"] or 0.0 for row in shown), default=None)
        if any(row.get("logits_error") is not None for row in shown) else None,
        unstable=sum(row["unstable"] for row in shown), note="; ".join(notes), split=split,
    )  # fmt: skip


def _one(states: set[str]) -> str:
    return next(iter(states)) if len(states) == 1 else "partial" if states else "off"


# -- pairs -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """word: faster, slower or inconclusive, said of the first; or not compared.  ratio: how many
    times as fast it is, by the medians of all.  within: the median, the least and the largest of
    the same inside single processes, where both met the same machine.  mixed: what differs
    between the two besides who made them."""

    word: str
    ratio: float | None = None
    within: tuple[float, float, float] | None = None
    why: str = ""
    mixed: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As a table says it: nothing that differs is left out."""
        text = self.word + (f": {self.why}" if self.why else "")
        return f"{text} (mixed: {', '.join(self.mixed)})" if self.mixed else text


def differences(a: Line, b: Line) -> tuple[str, ...]:
    """What makes a comparison of two lines one of more than who made them."""
    found = [name for name in PAIRED if getattr(a.entry, name) != getattr(b.entry, name)]
    if a.batch != b.batch:
        found.append(f"batch {a.batch} and {b.batch}")
    if (a.compiled, a.entry.compile) != (b.compiled, b.entry.compile):
        states = (line.compiled if line.entry.compile else "off" for line in (a, b))
        found.append(f"compile {' and '.join(states)}")
    if a.group != b.group:
        found.append("not interleaved")
    for name in PAIRED_PLACES:
        if a.environment.get(name) != b.environment.get(name):
            found.append(name)
    worst = max(a.logits_error or 0.0, b.logits_error or 0.0)
    if not worst <= SAME:
        found.append(f"logits by {worst:.2g}")
    return tuple(found)


def compare(ours: Line, other: Line, *, force: bool = False) -> Comparison:
    """Is ours faster?  Lines that differ in more are compared with `force` only, and marked."""
    for line in (ours, other):
        if not line.usable:
            return Comparison(word="not compared", why=line.status)
    mixed = differences(ours, other)
    if mixed and not force:
        return Comparison(word="not compared", why=f"{', '.join(mixed)} (--force)")
    found = statistics.judge(list(ours.times.values()), list(other.times.values()))
    shaky = [line for line in (ours, other) if 2 * line.unstable > len(line.times)]
    word, why = found.word, found.why
    if shaky and word != "inconclusive":
        word, why = "inconclusive", "unstable"
    within = _within(ours, other) if ours.group == other.group else None
    return Comparison(word=word, ratio=found.ratio, within=within, why=why, mixed=mixed)


def _within(ours: Line, other: Line) -> tuple[float, float, float] | None:
    shared = ours.times.keys() & other.times.keys()
    ratios = [median(other.times[p]) / median(ours.times[p]) for p in shared]
    return (median(ratios), min(ratios), max(ratios)) if ratios else None


def best(candidates: Sequence[Line]) -> Line | None:
    """The fastest by its median; what failed, or is not to be believed, never is."""
    usable = [line for line in candidates if line.usable and line.summary is not None]
    return min(usable, key=lambda line: line.summary.median / line.batch, default=None)  # type: ignore[union-attr]
