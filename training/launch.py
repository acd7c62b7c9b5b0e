"""Worker processes of a comparison on this machine, and the progress of its runs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from analysis.results.session import worker_path
from training.settings.config import RunConfig
from training.worker import RESUMABLE
from transom.errors import SpecError
from transom.progress import Bar
from transom.table import plain


class Interrupted(Exception):
    """Raised when the workers were asked to stop and have saved what they were at."""


class Launch(Protocol):
    """What makes a list of runs: `launch` here, `submit.submit` on a cluster."""

    def __call__(
        self, runs: Sequence[RunConfig], store: Path, *, jobs: int, plugins: Sequence[str] = (),
        save_steps: int = 0, what: str = "run",
    ) -> None: ...  # fmt: skip


def plan_text(
    runs: Sequence[RunConfig], store: Path, plugins: Sequence[str], save_steps: int
) -> str:
    """The JSON that `worker.make` reads."""
    return json.dumps({
        "store": str(store), "plugins": list(plugins), "save_steps": save_steps,
        "runs": [config.to_dict() for config in runs],
    })  # fmt: skip


def environment_of(runs: Sequence[RunConfig]) -> dict[str, str]:
    """Variables of the workers: the path of our packages, and threads on a CPU."""
    threads = {"OMP_NUM_THREADS": str(runs[0].threads)} if runs[0].device == "cpu" else {}
    return {"PYTHONPATH": worker_path(), **threads}


def launch(
    runs: Sequence[RunConfig], store: Path, *, jobs: int, plugins: Sequence[str] = (),
    save_steps: int = 0, what: str = "run",
) -> None:  # fmt: skip
    """Makes runs in worker processes, and shows what is done of all of them.

    A worker that dies is started again while runs are left; its run resumes.

    Args:
        runs: that have no row yet.
        store: path of the store.
        jobs: worker processes at a time.
        plugins: modules that register mixers.
        save_steps: steps between checkpoints; 0: as many as take a minute.
        what: name of a run in the progress bar.

    Raises:
        SpecError: a worker refused the plan; the message is the worker's.
        Interrupted: on an interrupt or SIGTERM, when all workers have saved.
    """
    if not runs:
        return
    plan = plan_text(runs, store, plugins, save_steps)
    environment = {**os.environ, **environment_of(runs)}
    events: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()
    workers = [Worker(plan, environment, events) for _ in range(min(jobs, len(runs)))]
    restarts = len(runs) * 3
    done = dict.fromkeys((config.slot for config in runs), 0.0)
    asked = False
    with Bar(runs, unit=what) as shown:
        while workers:
            try:
                worker, event = events.get()
            except KeyboardInterrupt:
                asked = True
                for each in workers:
                    each.process.terminate()
                continue
            if event is not None:
                shown.say(moved(shown, done, event))
                continue
            workers.remove(worker)
            code, said = worker.end()
            if code == 2:
                for each in workers:
                    each.process.terminate()
                raise SpecError(said.removeprefix("error: "))
            if code not in (0, RESUMABLE) and not asked and restarts:
                restarts -= 1
                workers.append(Worker(plan, environment, events))
            elif code not in (0, RESUMABLE) and not asked:
                raise SpecError(f"the workers end with code {code}: {said}")
    if asked:
        raise Interrupted


def moved(shown: Bar[Any], done: dict[str, float], event: dict[str, Any]) -> str:
    """Moves a progress bar on by what an event adds to `done`; returns the event in words."""
    slot = event["slot"]
    shown.advance(event["done"] - done.get(slot, 0.0))
    done[slot] = event["done"]
    return f"{slot}: {event['accuracy']:.1%}"


class Worker:
    """A worker process; its events go into a queue, None when its output ends."""

    def __init__(
        self, plan: str, environment: dict[str, str], events: queue.Queue[Any]
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training.worker"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(plan)
            self.process.stdin.close()
        self.said: list[str] = []
        self.events = events
        self.threads = [
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            with contextlib.suppress(ValueError):
                self.events.put((self, json.loads(line)))
        self.events.put((self, None))

    def _listen(self, errors: IO[str]) -> None:
        for line in errors:
            if line.strip():
                self.said = [*self.said[-20:], line.strip()]

    def end(self) -> tuple[int, str]:
        """(exit code, last line on stderr) of a worker whose output has ended."""
        code = self.process.wait()
        self.threads[1].join()
        return code, plain(self.said[-1])[:300] if self.said else "it said nothing"
