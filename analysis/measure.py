"""The worker: ``python -m analysis.measure`` reads one job from stdin and writes rows to stdout.

A job is JSON: {"task": time, memory or split, "measurements": [...], "samples", "seed",
"warm_seconds", "plugins"}.
Answers are lines of JSON: {"start": i} before measurement i runs, {"row": {...}} after it.
Whatever libraries print goes to stderr.
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

from analysis.results import environment, lock, store
from analysis.results.measurement import Measurement, from_dict
from analysis.timing import build_model, clock, memory, profiling, steps
from transom import cli, table
from transom.errors import cause_of

Row = dict[str, Any]
SINGLE_TASKS: dict[str, Callable[[Measurement], Row]] = {
    "memory": memory.peak, "split": profiling.profile_of,
}  # fmt: skip
# allowed error, relative to the largest value, of the timed call in its dtype and compile state
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


class Job:
    """A job in progress.  write_line: receives every line of the answer."""

    def __init__(self, job: Mapping[str, Any], write_line: Callable[[Row], None]) -> None:
        cli.load_plugins(job["plugins"])
        self.job, self.write_line = job, write_line
        self.measurements = [from_dict(config) for config in job["measurements"]]
        first = self.measurements[0]
        if first.threads:
            torch.set_num_threads(first.threads)
        self.environment = environment.header(first.device, first.threads)
        self.started = time.monotonic()

    def run(self) -> None:
        if self.job["task"] == "time":
            self.time()
            return
        for i, measurement in enumerate(self.measurements):
            self.announce(i)
            self.started = time.monotonic()
            try:
                self.write_row(i, {"status": "ok", **SINGLE_TASKS[self.job["task"]](measurement)})
            except Exception as error:
                self.write_row(i, failed(error))

    def announce(self, i: int) -> None:
        self.write_line({"start": i})

    def write_row(self, i: int, content: Row) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {
            "kind": self.job["task"], "config": self.measurements[i].to_dict(), **content,
            "at": now, "took": time.monotonic() - self.started, "environment": self.environment,
        }  # fmt: skip
        self.write_line({"row": store.encode(row)})

    def time(self) -> None:
        """Times all measurements, interleaved."""
        models: dict[int, tuple[build_model.Built, int]] = {}
        for i, measurement in enumerate(self.measurements):
            self.announce(i)
            try:
                models[i] = build_model.fitting(measurement, build_model.build)
            except Exception as error:
                self.write_row(i, failed(error))
        indices = list(models)
        gc.collect()
        gc.freeze()  # models stay alive: the collector need not search them while the clock runs
        timings = clock.measure(
            [models[i][0].runner for i in indices],
            samples=self.job["samples"], seed=self.job["seed"],
            clock=clock.Clock(sync=steps.sync_of(self.measurements[0].device)),
            on_start=lambda n: self.announce(indices[n]), warm_seconds=self.job["warm_seconds"],
        )  # fmt: skip
        gc.unfreeze()
        for i, timing in zip(indices, timings, strict=True):
            if isinstance(timing, Exception):
                self.write_row(i, failed(timing))
                continue
            built, batch = models[i]
            reason = timing.wrong or inaccuracy(self.measurements[i], built)
            self.write_row(i, {
                "status": "invalid" if reason else "ok", "reason": reason, "batch_used": batch,
                "samples": timing.samples, "firsts": timing.firsts, "repeats": timing.repeats,
                "warm": timing.warm, "unstable": timing.unstable, "compiled": built.compiled,
                "macs": built.macs, "weight_bytes": built.weight_bytes,
                "logits_error": built.logits_error, "answer_error": built.answer_error,
                "backends": built.backends,
            })  # fmt: skip


def failed(error: BaseException) -> Row:
    text = table.plain(cause_of(error, named=True))
    return {"status": "failed", "reason": text if len(text) <= 300 else text[:297] + "..."}


def inaccuracy(measurement: Measurement, built: build_model.Built) -> str:
    error, allowed = built.answer_error, TOLERANCE[measurement.dtype]
    # unequal logits of a peer are reported by the summary, and are no fault of the timing
    logits_error = built.logits_error or 0.0
    if error is None or error <= max(allowed, 2 * logits_error):
        return ""
    return f"the timed answer is {error:.2g} from the eager float32 one, allowed {allowed:g}"


def die_with_parent() -> None:
    """On Linux, ends this worker when its command is killed, so that it slows no later one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)

    def write_line(line: Row) -> None:
        answers.write(json.dumps(line) + "\n")

    job = json.loads(sys.stdin.read())
    with lock.measuring():  # its parent has the lock, unless a person wrote the job
        Job(job, write_line).run()
    answers.flush()
    return cli.AGREED


if __name__ == "__main__":
    cli.run(main)
