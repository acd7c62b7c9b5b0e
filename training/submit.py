"""Runs of a comparison as jobs of a cluster: Slurm, or this machine, by submitit.

Every job is a worker of the whole list: locks in the store's folder divide the runs, and the
cluster has the only queue.  A job saves before its time limit and when it is preempted, is queued
again, and its run resumes to the bit.

submitit pickles each job into STORE.d/jobs and unpickles it where it runs, so whoever can write
to that folder can run code as its owner.  It is made for its owner alone, and one that others can
write to is refused.  This module unpickles nothing: it reads the logs there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.results.store import Store
from training import plan
from training.launch import FORMAT, Interrupted, environment_of, plan_text, show
from training.loop.config import RunConfig
from training.worker import DEATHS, RESUMABLE, lock, make
from transom.errors import SpecError, printable
from transom.progress import bar
from transom.table import plain

POLL_SECONDS = {"local": 0.5, "slurm": 5.0}
ENDLESS = 1_000_000  # time limits that a job may come to; each of them saves
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where jobs run, and what each of them asks for.

    Args:
        kind: ``slurm``, or ``local`` for this machine.
        partition: of Slurm; None: its default.
        processes: of a run, each with a GPU where the runs are on GPUs.
        minutes: time limit of a job, which saves before it and is queued again.
    """

    kind: str
    partition: str | None = None
    processes: int = 1
    minutes: int = 240

    def check(self) -> None:
        """Raises SpecError where submitit or Slurm's commands are missing."""
        if importlib.util.find_spec("submitit") is None:
            raise SpecError(
                f"--submit {self.kind}: needs submitit; pip install transom[cluster]"
            )
        if self.kind == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise SpecError("--submit slurm: no sbatch and srun here; --submit local needs none")


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


class Job:
    """A submitted job, as its log and its state show it."""

    def __init__(self, job: Any) -> None:
        self.job, self.read, self.end, self.state = job, 0, "", "PENDING"

    def events(self) -> Iterator[dict[str, Any]]:
        """Events that its log has gained since the last call."""
        with contextlib.suppress(OSError), self.job.paths.stdout.open("rb") as file:
            file.seek(self.read)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.read += len(whole)
            for line in whole.splitlines():
                event = None
                if line.startswith(b"{"):
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                if isinstance(event, dict):
                    self.end = event.get("end", self.end)
                    yield event

    def failed(self) -> bool:
        """Whether an exception ended it; a killed job leaves no result."""
        return not self.end and self.job.paths.result_pickle.exists()

    def complaint(self) -> str:
        """Its last line, and where the rest of its log is."""
        path = self.job.paths.stderr
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            said = [line.strip() for line in lines if line.strip()]
            own = [line for line in said if not line.startswith(("srun:", "slurmstepd:"))]
            if last := (own or said)[-1:]:
                text = plain(last[0]).removeprefix("transom.errors.SpecError: ")[:300]
                return f"job {self.job.job_id}: {text} (log: {printable(path)})"
        return f"job {self.job.job_id} ended as {self.state} and said nothing (log: {path})"


class Jobs:
    """The jobs of one list of runs.

    Args:
        cluster: where they run.
        folder: of submitit's files.
        work: what each of them does.
        runs: the list.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, work: Work, runs: Sequence[RunConfig]
    ) -> None:
        self.kind, self.work = cluster.kind, work
        self.active: list[Job] = []
        self.environment = environment_of(runs)
        self.executor = _executor(cluster, folder, runs[0])

    def add(self, count: int) -> None:
        """Submits jobs, in Slurm as one array.

        Raises:
            SpecError: with what sbatch says.
        """
        old = {key: os.environ.get(key) for key in self.environment}
        os.environ.update(self.environment)
        # a Ctrl-C is for this command, which ends its jobs; they inherit the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                jobs = self.executor.submit_array([self.work] * count)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise SpecError(f"--submit {self.kind}: {plain('; '.join(lines))[:300]}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for key, value in old.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        self.active += [Job(job) for job in jobs]

    def update(self) -> list[Job]:
        """Asks for the states; jobs that have ended are returned, and active no more."""
        if self.kind == "local":
            for each in self.active:
                each.state = "COMPLETED" if each.job.done() else "RUNNING"
        elif self.active and (states := slurm_states()) is not None:
            for each in self.active:
                each.state = states.get(each.job.job_id, "COMPLETED")
        ended = [each for each in self.active if each.state in ENDED]
        self.active = [each for each in self.active if each.state not in ENDED]
        return ended

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Asks jobs to save and end; those that wait in the queue leave it."""
        if self.kind == "local":
            for each in jobs:  # submitit's own way would kill them a second later
                if not each.job.done():
                    os.kill(int(each.job.job_id), signal.SIGTERM)
        elif jobs:
            names = [each.job.job_id for each in jobs]
            subprocess.run(["scancel", *names], capture_output=True, check=False)

    def end(self) -> None:
        """Ends all jobs, and waits until they have saved or until a second interrupt."""
        with contextlib.suppress(KeyboardInterrupt):
            while self.active:
                self.cancel(self.active)
                time.sleep(POLL_SECONDS["local"])
                self.update()


def slurm_states() -> dict[str, str] | None:
    """State of every job of this user by its id; None while Slurm does not answer.

    squeue needs no accounting, which sacct and so submitit's own states do.
    """
    command = ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) == 2}


def _executor(cluster: Cluster, folder: Path, run: RunConfig) -> Any:
    import submitit

    gpus = cluster.processes if run.device == "cuda" else 0
    delay = min(90, cluster.minutes * 15)  # seconds for saving, before the time limit
    executor: Any
    if cluster.kind == "local":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        executor = submitit.LocalExecutor(folder, max_num_timeout=ENDLESS)
        executor.update_parameters(
            timeout_min=cluster.minutes, signal_delay_s=delay, tasks_per_node=cluster.processes,
            gpus_per_node=gpus, visible_gpus=[int(n) for n in seen if n.isdecimal()],
        )  # fmt: skip
        return executor
    executor = submitit.SlurmExecutor(folder, max_num_timeout=ENDLESS)
    executor.update_parameters(
        job_name="transom", partition=cluster.partition, time=cluster.minutes,
        signal_delay_s=delay, ntasks_per_node=cluster.processes, gpus_per_node=gpus or None,
        cpus_per_task=run.threads, srun_args=[f"--cpus-per-task={run.threads}"],
    )  # fmt: skip
    return executor


def _trusted(folder: Path) -> Path:
    """The folder, made for its owner alone; raises SpecError for one that others can write to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise SpecError(f"--store: {printable(folder)}: {error.strerror or error}") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise SpecError(
            f"{printable(folder)}: others can write to it, and submitit unpickles jobs from it; "
            "remove it, or give another --store"
        )
    return folder


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
    crew = Jobs(cluster, _trusted(Path(f"{store}.d") / "jobs"), Work(text), runs)
    with bar(None, unit=what, total=len(runs), bar_format=f"{FORMAT}{{desc}}") as shown:
        try:
            _attend(crew, list(runs), Store(store), min(jobs, len(runs)), shown)
        except KeyboardInterrupt:
            crew.end()
            raise Interrupted from None
        except BaseException:
            crew.cancel(crew.active)
            raise


def _attend(crew: Jobs, runs: list[RunConfig], store: Store, places: int, shown: Any) -> None:
    """Keeps jobs on the list until every run has a row."""
    done = dict.fromkeys((config.slot for config in runs), 0.0)
    lives = DEATHS * places  # jobs that may be killed with nothing said by any in between
    while True:
        jobs, ended, dead = list(crew.active), crew.update(), 0
        rows = {row["slot"]: row for row in plan.of_plan(runs, store.read()[0])}
        events = [event for each in jobs for event in each.events()]
        events += [{**row, "done": 1.0} for row in rows.values()]
        for event in events:
            if done.get(event.get("slot", ""), 2.0) < event.get("done", 0.0):
                show(shown, done, event)
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
        shown.set_description_str(
            "".join(f", {states.count(s)} {s}" for s in dict.fromkeys(states)), refresh=True
        )
        time.sleep(POLL_SECONDS[crew.kind])


def _free(config: RunConfig, store: Path) -> bool:
    """Whether no worker holds a run."""
    with lock(plan.folder_of(store, config.slot)) as mine:
        return mine
