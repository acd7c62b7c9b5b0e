"""Lines of a table from stored rows: medians with their spread, shares of the peak, ratios."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from analysis.results import statistics
from analysis.results.environment import lasting
from analysis.results.measurement import Measurement, canonical, from_dict, key_of
from analysis.results.statistics import Summary

Row = dict[str, Any]
SAME = 1e-5  # of the largest logit, float32: difference of two models with equal weights
TRAIN = 3  # forward, and two products backward for each forward
MEMORY = "peak_bytes", "growth_bytes"
PAIRED = ("mode", "dtype", "layout", "device", "malloc", "size")
PAIRED_ENVIRONMENT = (
    "threads", "tf32", "deterministic", "processor", "cores_usable", "governor", "gpu", "python",
    "torch", "code",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line:
    """Results of one measurement in one group on one machine.

    status: ok, failed or invalid, with the reason.  times: samples in seconds, by process.  share:
    of the rate of the machine's best matrix product in these processes.  unstable: number of
    processes whose times did not settle.
    """

    measurement: Measurement
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
    profile: Sequence[Row] = ()

    @property
    def usable(self) -> bool:
        return self.status == "ok"

    @property
    def is_valid(self) -> bool:
        """True if every process succeeded and the logits equal ours."""
        return self.usable and not self.note and (self.logits_error or 0.0) <= SAME


def lines(rows: Iterable[Row]) -> list[Line]:
    """One line per measurement, group and machine, in the order of first appearance.

    Of two rows with one key the first counts.  Matrix products give the peak rate and no lines.
    """
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    seen: set[str] = set()
    rates: defaultdict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    machines: dict[str, str] = {}
    for row in rows:
        if "config" not in row or "group" not in row or str(row.get("key")) in seen:
            continue
        seen.add(str(row.get("key")))
        config = canonical(row["config"])
        if "environment" in row:
            machine = key_of(lasting(row["environment"]))
            machines.setdefault(row["group"], machine)
        else:  # a process that died has not reported its environment
            machine = machines.get(row["group"], "")
        grouped.setdefault((row["group"], machine, config), []).append(row)
        if row["config"]["kind"] == "matmul" and row.get("status") == "ok":
            rate = 2 * row["macs"] / median(row["samples"])
            rates[row["group"], machine, row["config"]["dtype"], row["process"]].append(rate)
    summarised = []
    for (group, machine, _), measured_rows in grouped.items():
        if measured_rows[0]["config"]["kind"] != "matmul":
            rate_key = group, machine, measured_rows[0]["config"]["dtype"]
            best = {key[3]: max(rate) for key, rate in rates.items() if key[:3] == rate_key}
            summarised.append(_line(group, measured_rows, best))
    return summarised


def _line(group: str, rows: Sequence[Row], peaks: Mapping[int, float]) -> Line:
    """The line of all rows of one measurement.  peaks: best rate of the machine, by process."""
    measurement = from_dict(rows[0]["config"])
    time_rows = [row for row in rows if row["kind"] == "time"]
    shown = _of_status(time_rows, "ok") or _of_status(time_rows, "invalid")
    status, reason = _status(time_rows, shown)
    peak_bytes, growth_bytes, memory_notes = _memory(rows)
    profile, profile_notes = _profile(rows)
    times = {row["process"]: row["samples"] for row in shown}
    first = shown[0] if shown else rows[0]
    batch = min((row["batch_used"] for row in shown), default=measurement.batch)
    macs = first.get("macs")
    work = 2 * (macs or 0) * batch * (TRAIN if measurement.mode == "train" else 1)
    return Line(
        measurement=measurement, group=group, environment=first.get("environment", {}),
        status=status, reason=reason, times=times,
        summary=statistics.summarise(list(times.values())) if times else None,
        batch=batch, macs=macs,
        compiled=_common_state({row.get("compiled", "off") for row in shown}),
        share=_share_of_peak(work, times, peaks) if macs and status == "ok" else None,
        peak_bytes=peak_bytes, growth_bytes=growth_bytes, logits_error=_logits_error(shown),
        unstable=sum(row["unstable"] for row in shown),
        note="; ".join([*_failures(time_rows), *memory_notes, *profile_notes]), profile=profile,
    )  # fmt: skip


def _of_status(rows: Iterable[Row], status: str) -> list[Row]:
    return [row for row in rows if row["status"] == status]


def _status(time_rows: Sequence[Row], shown: Sequence[Row]) -> tuple[str, str]:
    """Status and reason of a line whose times are those of `shown`."""
    if invalid := _of_status(time_rows, "invalid"):
        status, reason = "invalid", invalid[0]["reason"]
    elif shown:
        status, reason = "ok", ""
    else:
        failed = _of_status(time_rows, "failed")
        status, reason = "failed", failed[0]["reason"] if failed else "was not timed"
    seconds = {name: [s for row in shown for s in row[name]] for name in ("firsts", "repeats")}
    if ratio := statistics.cached(seconds["firsts"], seconds["repeats"]):
        why = f"a new input takes {ratio:.3g} times as long as one seen before"
        status, reason = "invalid", reason or why
    return status, reason


def _failures(time_rows: Sequence[Row]) -> list[str]:
    """A note on the processes that failed while others succeeded."""
    failed = _of_status(time_rows, "failed")
    if not (failed and _of_status(time_rows, "ok")):
        return []
    return [f"{len(failed)} of {len(time_rows)} processes failed"]


def _memory(rows: Sequence[Row]) -> tuple[float | None, float | None, list[str]]:
    """Medians of peak and growth in bytes, and a note if no process could tell them."""
    memory_rows = [row for row in rows if row["kind"] == "memory"]
    if ok_rows := _of_status(memory_rows, "ok"):
        peak, growth = (median(row[name] for row in ok_rows) for name in MEMORY)
        return peak, growth, []
    return None, None, [f"memory: {row['reason']}" for row in memory_rows[:1]]


def _profile(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The last profile, and a note on each that failed; rows of files call it a split."""
    profile_rows = [row for row in rows if row["kind"] == "split"]
    profiles = [row["split"] for row in _of_status(profile_rows, "ok")]
    notes = [f"split: {row['reason']}" for row in profile_rows if row["status"] != "ok"]
    return (profiles[-1] if profiles else []), notes


def _share_of_peak(
    work: int, times: Mapping[int, Sequence[float]], peaks: Mapping[int, float]
) -> float | None:
    """Median over processes of the rate of `work` operations in units of the best rate."""
    shares = [work / median(times[p]) / peak for p, peak in peaks.items() if p in times]
    return median(shares) if shares else None


def _logits_error(shown: Sequence[Row]) -> float | None:
    """The largest difference from the logits of ours, None where none was compared."""
    if all(row.get("logits_error") is None for row in shown):
        return None
    return max(row["logits_error"] or 0.0 for row in shown)


def _common_state(states: set[str]) -> str:
    return next(iter(states)) if len(states) == 1 else "partial" if states else "off"


# -- pairs -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare`.

    word: faster, slower or inconclusive, of the first line; or not compared.  ratio: the other's
    median over ours.  within: median, least and largest of the ratios inside single processes.
    why: reason for the word.  mixed: settings and environment in which the lines differ.
    """

    word: str
    ratio: float | None = None
    within: tuple[float, float, float] | None = None
    why: str = ""
    mixed: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The cell of a table: word, reason and all differences."""
        text = self.word + (f": {self.why}" if self.why else "")
        return f"{text} (mixed: {', '.join(self.mixed)})" if self.mixed else text


def differences(a: Line, b: Line) -> tuple[str, ...]:
    """Settings, environment and logits in which two lines differ, besides their implementation."""
    left, right = a.measurement, b.measurement
    differing = [name for name in PAIRED if getattr(left, name) != getattr(right, name)]
    if a.batch != b.batch:
        differing.append(f"batch {a.batch} and {b.batch}")
    if (a.compiled, a.measurement.compile) != (b.compiled, b.measurement.compile):
        states = (line.compiled if line.measurement.compile else "off" for line in (a, b))
        differing.append(f"compile {' and '.join(states)}")
    if a.group != b.group:
        differing.append("not interleaved")
    for name in PAIRED_ENVIRONMENT:
        if a.environment.get(name) != b.environment.get(name):
            differing.append(name)
    worst = max(a.logits_error or 0.0, b.logits_error or 0.0)
    if not worst <= SAME:
        differing.append(f"logits by {worst:.2g}")
    return tuple(differing)


def compare(ours: Line, other: Line, *, force: bool = False) -> Comparison:
    """Compares the times of two lines; lines that differ in settings only with `force`, marked."""
    for line in (ours, other):
        if not line.usable:
            return Comparison(word="not compared", why=line.status)
    mixed = differences(ours, other)
    if mixed and not force:
        return Comparison(word="not compared", why=f"{', '.join(mixed)} (--force)")
    medians = statistics.compare_medians(list(ours.times.values()), list(other.times.values()))
    unstable_lines = [line for line in (ours, other) if 2 * line.unstable > len(line.times)]
    word, why = medians.word, medians.why
    if unstable_lines and word != "inconclusive":
        word, why = "inconclusive", "unstable"
    within = _ratio_in_processes(ours, other) if ours.group == other.group else None
    return Comparison(word=word, ratio=medians.ratio, within=within, why=why, mixed=mixed)


def _ratio_in_processes(ours: Line, other: Line) -> tuple[float, float, float] | None:
    shared = ours.times.keys() & other.times.keys()
    ratios = [median(other.times[p]) / median(ours.times[p]) for p in shared]
    return (median(ratios), min(ratios), max(ratios)) if ratios else None


def best(candidates: Sequence[Line]) -> Line | None:
    """The line with the least median time per image among those whose status is ok."""
    usable = [line for line in candidates if line.usable and line.summary is not None]
    return min(usable, key=lambda line: line.summary.median / line.batch, default=None)  # type: ignore[union-attr]
