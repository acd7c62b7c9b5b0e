"""Runs of a comparison as jobs of a cluster: Slurm, or this machine, by submitit.

Every job is a worker of the whole list: locks in the store's folder divide the runs, and the
cluster has the only queue.  A job saves before its time limit and when it is preempted, is queued
again, and its run resumes to the bit.

submitit pickles each job into STORE.d/jobs and unpickles it where it runs, so whoever can write
to that folder can run code as its owner.  It is made for its owner alone, and one that others can
write to is refused.  Our code unpickles nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.results.store import Store
from training import plan
from training.cluster import POLL_SECONDS, Cluster, Jobs, trusted
from training.launch import Interrupted, moved, plan_text
from training.settings.config import RunConfig
from training.worker import DEATHS, RESUMABLE, lock, make
from transom.errors import SpecError
from transom.progress import Bar


@dataclass(frozen=True)
class Work:
    """What a job does; submitit pickles it with no more than the text of the plan."""

    plan: str

    def __call__(self) -> None:
        """Makes runs until none is left, or until a signal asks for an end.

        The signal that comes before a time limit saves and queues the job again.  After SIGTERM
        Slurm does that itself, except where the job was cancelled.
        """
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        place = JobEnvironment()
        if place.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
        requeue = signal.getsignal(number)
        limits: list[int] = []

        def stop(caught: int, _: Any) -> None:
            limits.append(caught)
            signal.raise_signal(signal.SIGTERM)

        tell(end="")
        signal.signal(number, stop)
        finished = make(json.loads(self.plan), tell)
        signal.signal(number, requeue)
        tell(end="finished" if finished else "stopped")
        if finished:
            return
        if limits and callable(requeue):
            requeue(number, None)  # submitit's: calls `checkpoint`, queues the job again and exits
        sys.exit(0 if place.global_rank else RESUMABLE)

    def checkpoint(self) -> Any:
        """What submitit runs when the job has been queued again: the same list."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def tell(**event: Any) -> None:
    """Writes an event into the job's log, as a line of JSON."""
    print(json.dumps(event), flush=True)


def submit(
    runs: Sequence[RunConfig], store: Path, *, jobs: int, plugins: Sequence[str] = (),
    save_steps: int = 0, what: str = "run", cluster: Cluster,
) -> None:  # fmt: skip
    """Makes runs in jobs of a cluster, and shows what is done of all of them.

    A job that is killed is replaced while runs are left; its run resumes.  A job that somebody
    cancels is not.

    Args:
        runs: that have no row yet.
        store: path of the store, on a file system that all machines share.
        jobs: at a time.
        plugins: modules that register mixers.
        save_steps: steps between checkpoints; 0: as many as take a minute.
        what: name of a run in the progress bar.
        cluster: where the jobs run.

    Raises:
        SpecError: sbatch refused, a job failed, or job after job was killed; the message has the
            last line of the job and names its log.
        Interrupted: on an interrupt or SIGTERM, when the jobs have saved; or when all jobs were
            cancelled.
    """
    if not runs:
        return
    store = store.absolute()
    cluster.check()
    text = plan_text(runs, store, plugins, save_steps)
    crew = Jobs(cluster, trusted(Path(f"{store}.d") / "jobs"), Work(text), runs)
    with Bar(runs, unit=what) as shown:
        try:
            _attend(crew, list(runs), Store(store), min(jobs, len(runs)), shown)
        except KeyboardInterrupt:
            crew.end()
            raise Interrupted from None
        except BaseException:
            crew.cancel(crew.active)
            raise


def _attend(
    crew: Jobs, runs: list[RunConfig], store: Store, places: int, shown: Bar[RunConfig]
) -> None:
    """Keeps jobs on the list until every run has a row."""
    done = dict.fromkeys((config.slot for config in runs), 0.0)
    lives = DEATHS * places  # jobs that may be killed with nothing said by any in between
    last = ""
    while True:
        jobs, ended, dead = list(crew.active), crew.update(), 0
        rows = {row["slot"]: row for row in plan.of_plan(runs, store.read()[0])}
        events = [event for each in jobs for event in each.events()]
        events += [{**row, "done": 1.0} for row in rows.values()]
        for event in events:
            if done.get(event.get("slot", ""), 2.0) < event.get("done", 0.0):
                last = moved(shown, done, event)
                lives = DEATHS * places
        left = [config for config in runs if config.slot not in rows]
        for each in ended:
            if left and each.failed():
                raise SpecError(each.complaint())
            if left and each.state == "CANCELLED":
                places -= 1
            elif each.end != "finished":
                dead += 1
                lives -= not each.end
        if not left:
            crew.cancel([each for each in crew.active if each.state == "PENDING"])
            if not crew.active:
                return
        elif not places:
            raise Interrupted
        elif lives <= 0:
            raise SpecError(ended[-1].complaint())
        elif dead or not crew.active:
            free = sum(_free(config, store.path) for config in left)
            if count := min(dead or places, places - len(crew.active), free):
                crew.add(count)  # where none is free, workers of another command are at them
        states = [each.state.lower() for each in crew.active]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        shown.say(", ".join(filter(None, [*counts, last])))
        time.sleep(POLL_SECONDS[crew.kind])


def _free(config: RunConfig, store: Path) -> bool:
    """Whether no worker holds a run."""
    with lock(plan.folder_of(store, config.slot)) as mine:
        return mine
