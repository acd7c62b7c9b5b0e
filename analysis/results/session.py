"""A measuring session: fresh processes, one after another, their rows stored as they come.

The measurements of a group are compared: they run interleaved in each of its processes.  The
processes of all groups alternate, so that a machine that slows down slows all groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Any

from analysis.results import lock, store
from analysis.results.measurement import Measurement, canonical, key_of
from transom.packages import HOME
from transom.table import plain

Row = dict[str, Any]
Group = Sequence[Measurement]
# What glibc does with freed memory.  For a memory measurement it returns pages, so that resident
# memory is memory in use; for a timing it keeps them, so that no call waits for pages again.
MALLOC_RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MALLOC_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Configuration of a session.

    processes, samples: per measurement; samples per process.  memory: processes that measure peak
    memory.  profile: also divide the time among stages and operators.  warm_seconds: limit of a
    warm-up.  seconds: no process starts that would end later, by the longest that its group, or
    any group before its first, has taken; None for no limit.
    """

    groups: Sequence[Group]
    processes: int = 10
    samples: int = 10
    memory: int = 1
    profile: bool = False
    warm_seconds: float = 10.0
    seconds: float | None = None
    plugins: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """The work of one process.  keys: of the missing rows, by the index of the measurement."""

    task: str
    group: str
    process: int
    measurements: Group
    keys: dict[int, str] = field(default_factory=dict)


def tasks(plan: Plan, environment: Row, done: set[str]) -> list[Task]:
    """The processes that are still needed.

    A row's key is a digest of its measurement, group, process, settings and environment, so that
    changed code or another machine measures anew.
    """
    from analysis.results.environment import lasting

    found = []
    timing_jobs = [("time", p) for p in range(plan.processes)]
    single_jobs = [("memory", p) for p in range(plan.memory)] + [("split", 0)] * plan.profile
    for task, process in (*timing_jobs, *single_jobs):
        for group in plan.groups:
            group_digest = group_key(group)
            settings = {"samples": plan.samples, "warm_seconds": plan.warm_seconds}
            keys = {
                i: key_of({
                    "config": measurement.to_dict(), "task": task, "group": group_digest,
                    "process": process,
                    "settings": settings if task == "time" else {},
                    "environment": lasting(environment),
                })
                for i, measurement in enumerate(group)
                if task == "time" or measurement.kind != "matmul"
            }  # fmt: skip
            missing = {i: key for i, key in keys.items() if key not in done}
            if task == "time" and missing:
                found.append(Task(task, group_digest, process, group, missing))
            elif missing:  # each in a process of its own
                found += [
                    Task(task, group_digest, process, [group[i]], {0: key})
                    for i, key in missing.items()
                ]
    return found


def group_key(group: Group) -> str:
    return key_of([measurement.to_dict() for measurement in group])[:12]


def run(
    plan: Plan, environment: Row, *, into: store.Store | None = None, resume: bool = False,
    progress: Callable[[list[Task]], Iterable[Task]] | None = None, wait: bool = True,
) -> list[Row]:  # fmt: skip
    """Runs a plan, alone on this machine (analysis.results.lock).

    Args:
        plan: what to measure.
        environment: `environment.header` of this process.
        into: receives every row before the next process starts.
        resume: take the rows of `into` that the plan needs instead of measuring them again.
        progress: wraps the list of tasks, for a progress bar.
        wait: wait for another measurement of this machine to end.

    Returns:
        Every row of the plan, stored ones first.

    Raises:
        SpecError: for a store that cannot be written, and without `wait` while another process
            measures.
    """
    stored: list[Row] = []
    if into is not None:
        into.append([])  # raises now if the file cannot be written
        stored = into.read()[0] if resume else []
    stored_by_key = {str(row.get("key")): row for row in stored}
    pending, rows = tasks(plan, environment, set(stored_by_key)), list[Row]()
    with lock.measuring(wait=wait) if pending else contextlib.nullcontext():
        limit = _Limit(plan.seconds, monotonic())
        for task in progress(pending) if progress else pending:
            began = monotonic()
            if not limit.allows(task.group, began):
                continue
            new_rows = run_task(task, plan)
            if into is not None:
                into.append(new_rows)
            rows += new_rows
            limit.took[task.group] = max(monotonic() - began, limit.took.get(task.group, 0.0))
    wanted = {key for task in tasks(plan, environment, set()) for key in task.keys.values()}
    return [row for key, row in stored_by_key.items() if key in wanted] + rows


@dataclass
class _Limit:
    """Seconds of a session from its start, and the longest process of each group."""

    seconds: float | None
    start: float
    took: dict[str, float] = field(default_factory=dict)

    def allows(self, group: str, now: float) -> bool:
        """Whether a process of a group may start; the first may, or there were no row."""
        if self.seconds is None or not self.took:
            return True
        expected = self.took.get(group, max(self.took.values()))
        return now - self.start + expected <= self.seconds


def run_task(task: Task, plan: Plan) -> list[Row]:
    """Runs a task in a fresh process, and again without a measurement that killed the process."""
    found: dict[int, Row] = {}
    left = list(range(len(task.measurements)))
    while left:
        job = {
            "task": task.task, "measurements": [task.measurements[i].to_dict() for i in left],
            "samples": plan.samples, "seed": task.process, "warm_seconds": plan.warm_seconds,
            "plugins": list(plan.plugins),
        }  # fmt: skip
        rows, current, exit_reason = run_worker(job)
        if not exit_reason:
            found |= zip(left, rows, strict=True)
            break
        failed = left[current]
        found[failed] = {
            "kind": task.task, "config": task.measurements[failed].to_dict(), "status": "failed",
            "reason": exit_reason,
        }  # fmt: skip
        left.remove(failed)
    origin = {"group": task.group, "process": task.process}
    return [{"key": key, **origin, **found[i]} for i, key in task.keys.items()]


def run_worker(job: Row) -> tuple[list[Row], int, str]:
    """(a row per measurement in their order, the index of the last one, why it died or "")."""
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "analysis.measure"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, env=worker_environment(job),
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(job).encode())
                worker.stdin.close()
            rows, current = collect_rows(job, map(json.loads, worker.stdout))
        except BaseException:  # an interrupt
            worker.kill()
            worker.wait()
            raise
        code = worker.wait()
        return (rows, current, "") if code == 0 else ([], current, _exit_reason(code, errors))


def collect_rows(job: Row, lines: Iterable[Row]) -> tuple[list[Row], int]:
    """(the rows in the order of the job's measurements, the index of the last that started)."""
    rows: dict[str, Row] = {}
    current = 0
    for line in lines:
        current = line.get("start", current)
        if "row" in line:
            row = store.decode(line["row"])
            rows[canonical(row["config"])] = row
    wanted = [canonical(config) for config in job["measurements"]]
    return [rows[config] for config in wanted if config in rows], current


def _exit_reason(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [text for text in errors.read().decode(errors="replace").splitlines() if text.strip()]
    last = plain(lines[-1])[:300] if lines else "it said nothing"
    if code < 0:
        hint = " (out of memory?)" if code == -9 else ""
        return f"the process was ended by signal {-code}{hint} while it ran this"
    return f"the process ended with code {code} while it ran this: {last}"


def worker_environment(job: Row) -> dict[str, str]:
    """Environment variables of a worker: the path of our packages, glibc's memory settings, and
    that its parent has the lock."""
    keeps = MALLOC_KEEP if job["measurements"][0]["malloc"] == "keep" else {}
    extra = MALLOC_RETURN if job["task"] == "memory" else keeps
    parent = {lock.HELD_BY: str(os.getpid())}
    return {**os.environ, "PYTHONPATH": worker_path(), **parent, **extra}


def worker_path() -> str:
    """PYTHONPATH of a worker: our packages, then what this process could import."""
    path = [str(HOME), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.pathsep.join(path)
