"""Jobs of Slurm, or of this machine, by submitit: submitted, asked for their states, ended.

This module unpickles nothing: it reads the logs of the jobs.
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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.launch import environment_of
from training.settings.config import RunConfig
from transom.errors import SpecError, printable
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
        work: what each of them calls.
        runs: the list.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, work: Callable[[], None], runs: Sequence[RunConfig]
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


def trusted(folder: Path) -> Path:
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
