"""Measuring many things: fresh processes, one after another, their rows stored as they come.

A group is what is compared: its entries run interleaved in every one of its processes.  The
processes of all groups take turns, so that a machine that slows down slows all of them.
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
from typing import IO, Any

from analysis.results import measurement, store
from analysis.results.measurement import Entry
from transom.packages import HOME
from transom.table import plain

Row = dict[str, Any]
Group = Sequence[Entry]
# What glibc does with freed memory.  Whoever measures memory wants it given back, so that what is
# resident is what is held; whoever measures time, that no call waits for the same pages again.
GIVES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
KEEPS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    processes and samples: of each entry.  memory: processes that measure its peak memory.
    split: also divide the time of each entry among its stages and operators.
    """

    groups: Sequence[Group]
    processes: int = 10
    samples: int = 10
    memory: int = 1
    split: bool = False
    warm_seconds: float = 10.0
    plugins: Sequence[str] = ()


@dataclass(frozen=True)
class Task:
    """What one process does.  keys: of the rows that are wanted, by the number of the entry."""

    task: str
    group: str
    process: int
    entries: Group
    keys: dict[int, str] = field(default_factory=dict)


def tasks(plan: Plan, environment: Row, done: set[str]) -> list[Task]:
    """Every process that is still needed.

    A row's key is of its entry, the group it ran in, its process, the settings and the
    environment: other code or another machine measures anew.
    """
    from analysis.results.environment import lasting

    found = []
    timed = [("time", p) for p in range(plan.processes)]
    alone = [("memory", p) for p in range(plan.memory)] + [("split", 0)] * plan.split
    for task, process in (*timed, *alone):
        for group in plan.groups:
            digest = group_key(group)
            settings = {"samples": plan.samples, "warm_seconds": plan.warm_seconds}
            keys = {
                i: measurement.key_of({
                    "config": entry.to_dict(), "task": task, "group": digest, "process": process,
                    "settings": settings if task == "time" else {},
                    "environment": lasting(environment),
                })
                for i, entry in enumerate(group)
                if task == "time" or entry.kind != "matmul"
            }  # fmt: skip
            left = {i: key for i, key in keys.items() if key not in done}
            if task == "time" and left:
                found.append(Task(task, digest, process, group, left))
            elif left:  # each in a process of its own
                found += [Task(task, digest, process, [group[i]], {0: k}) for i, k in left.items()]
    return found


def group_key(group: Group) -> str:
    return measurement.key_of([entry.to_dict() for entry in group])[:12]


def run(
    plan: Plan, environment: Row, *, into: store.Store | None = None, resume: bool = False,
    progress: Callable[[list[Task]], Iterable[Task]] | None = None,
) -> list[Row]:  # fmt: skip
    """Every row of the plan: those that the store has when resuming, and those measured now.

    A row is on the disk before the next process starts.  Raises SpecError for a store that cannot
    be written.
    """
    old: list[Row] = []
    if into is not None:
        into.append([])  # says now that it cannot be written
        old = into.read()[0] if resume else []
    known = {str(row.get("key")): row for row in old}
    left, rows = tasks(plan, environment, set(known)), list[Row]()
    for task in progress(left) if progress else left:
        made = perform(task, plan)
        if into is not None:
            into.append(made)
        rows += made
    asked = {key for task in tasks(plan, environment, set()) for key in task.keys.values()}
    return [row for key, row in known.items() if key in asked] + rows


def perform(task: Task, plan: Plan) -> list[Row]:
    """One task in processes of its own: a second one without the entry that killed the first."""
    found: dict[int, Row] = {}
    left = list(range(len(task.entries)))
    while left:
        job = {
            "task": task.task, "entries": [task.entries[i].to_dict() for i in left],
            "samples": plan.samples, "seed": task.process, "warm_seconds": plan.warm_seconds,
            "plugins": list(plan.plugins),
        }  # fmt: skip
        rows, current, death = work(job)
        if not death:
            found |= zip(left, rows, strict=True)
            break
        guilty = left[current]
        found[guilty] = {
            "kind": task.task, "config": task.entries[guilty].to_dict(), "status": "failed",
            "reason": death,
        }  # fmt: skip
        left.remove(guilty)
    same = {"group": task.group, "process": task.process}
    return [{"key": key, **same, **found[i]} for i, key in task.keys.items()]


def work(job: Row) -> tuple[list[Row], int, str]:
    """(a row per entry in their order, the entry it was at, why it died or nothing)."""
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "analysis.measure"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, env=surroundings(job),
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(job).encode())
                worker.stdin.close()
            rows, current = answers(job, map(json.loads, worker.stdout))
        except BaseException:  # a user who has seen enough
            worker.kill()
            worker.wait()
            raise
        code = worker.wait()
        return (rows, current, "") if code == 0 else ([], current, _death(code, errors))


def answers(job: Row, lines: Iterable[Row]) -> tuple[list[Row], int]:
    """(the rows in the order of the job's entries, the entry that ran last)."""
    rows: dict[str, Row] = {}
    current = 0
    for line in lines:
        current = line.get("start", current)
        if "row" in line:
            row = store.decode(line["row"])
            rows[measurement.canonical(row["config"])] = row
    wanted = [measurement.canonical(config) for config in job["entries"]]
    return [rows[config] for config in wanted if config in rows], current


def _death(code: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [text for text in errors.read().decode(errors="replace").splitlines() if text.strip()]
    last = plain(lines[-1])[:300] if lines else "it said nothing"
    if code < 0:
        hint = " (out of memory?)" if code == -9 else ""
        return f"the process was ended by signal {-code}{hint} while it ran this"
    return f"the process ended with code {code} while it ran this: {last}"


def surroundings(job: Row) -> dict[str, str]:
    """Of a worker: our packages on its path, and what is done with freed memory."""
    path = [str(HOME), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    keeps = KEEPS if job["entries"][0]["malloc"] == "keep" else {}
    extra = GIVES if job["task"] == "memory" else keeps
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **extra}
