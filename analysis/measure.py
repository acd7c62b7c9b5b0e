"""The worker: ``python -m analysis.measure`` reads one job from stdin and writes rows to stdout.

A job is JSON: {"task": time, memory or split, "entries": [...], "samples", "seed",
"warm_seconds", "plugins"}.
Answers are lines of JSON: {"start": i} before entry i runs, {"row": {...}} for each that is done.
Everything else that is printed, by whatever library, goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from analysis.results import environment, measurement, store
from analysis.results.measurement import Entry
from analysis.timing import build_model, clock, memory, profiling, steps
from transom import cli, table

Row = dict[str, Any]
ONE: dict[str, Callable[[Entry], Row]] = {"memory": memory.peak, "split": profiling.split}
# of the largest answer, for the very call that is timed, in its own dtype and compile state
CLOSE = {"float64": 1e-4, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


class Job:
    """A job under way.  say: is given every line of the answer."""

    def __init__(self, job: Mapping[str, Any], say: Callable[[Row], None]) -> None:
        cli.load_plugins(job["plugins"])
        self.job, self.say = job, say
        self.entries = [measurement.from_dict(config) for config in job["entries"]]
        first = self.entries[0]
        if first.threads:
            torch.set_num_threads(first.threads)
        self.environment = environment.header(first.device, first.threads)
        self.begun = time.monotonic()

    def run(self) -> None:
        if self.job["task"] == "time":
            self.time()
            return
        for i, entry in enumerate(self.entries):
            self.starting(i)
            self.begun = time.monotonic()
            try:
                self.tell(i, {"status": "ok", **ONE[self.job["task"]](entry)})
            except Exception as error:
                self.tell(i, failed(error))

    def starting(self, i: int) -> None:
        self.say({"start": i})

    def tell(self, i: int, content: Row) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"kind": self.job["task"], "config": self.entries[i].to_dict(), **content, "at": now,
               "took": time.monotonic() - self.begun, "environment": self.environment}  # fmt: skip
        self.say({"row": store.encode(row)})

    def time(self) -> None:
        """All entries interleaved."""
        built: dict[int, tuple[build_model.Built, int]] = {}
        for i, entry in enumerate(self.entries):
            self.starting(i)
            try:
                built[i] = build_model.fitting(entry, build_model.build)
            except Exception as error:
                self.tell(i, failed(error))
        at = list(built)
        gc.collect()
        gc.freeze()  # models live on: nothing of them is looked at while the clock runs
        timings = clock.measure(
            [built[i][0].runner for i in at], samples=self.job["samples"], seed=self.job["seed"],
            clock=clock.Clock(sync=steps.sync_of(self.entries[0].device)),
            said=lambda n: self.starting(at[n]), warm_seconds=self.job["warm_seconds"],
        )  # fmt: skip
        gc.unfreeze()
        for i, own in zip(at, timings, strict=True):
            if isinstance(own, Exception):
                self.tell(i, failed(own))
                continue
            one, batch = built[i]
            wrong = own.wrong or inaccurate(self.entries[i], one)
            self.tell(i, {
                "status": "invalid" if wrong else "ok", "reason": wrong, "batch_used": batch,
                "samples": own.samples, "firsts": own.firsts, "repeats": own.repeats,
                "warm": own.warm, "unstable": own.unstable, "compiled": one.compiled,
                "macs": one.macs, "weight_bytes": one.weight_bytes,
                "logits_error": one.logits_error, "answer_error": one.answer_error,
                "backends": one.backends,
            })  # fmt: skip


def failed(error: BaseException) -> Row:
    text = table.plain(" ".join(f"{type(error).__name__}: {error}".split()))
    return {"status": "failed", "reason": text if len(text) <= 300 else text[:297] + "..."}


def inaccurate(entry: Entry, built: build_model.Built) -> str:
    error, allowed = built.answer_error, CLOSE[entry.dtype]
    own = built.logits_error or 0.0  # a peer that computes something else is said to, elsewhere
    if error is None or error <= max(allowed, 2 * own):
        return ""
    return f"the timed answer is {error:.2g} from the eager float32 one, allowed {allowed:g}"


def die_with_parent() -> None:
    """Linux: a worker whose command was killed must not slow down the next one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)

    def say(line: Row) -> None:
        answers.write(json.dumps(line) + "\n")

    Job(json.loads(sys.stdin.read()), say).run()
    answers.flush()
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
