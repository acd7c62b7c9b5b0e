"""`training.compare --submit`: runs as jobs of this machine and of a real Slurm, killed, requeued,
interrupted, and equal to the bit to runs that were not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis.results.store import Store
from training import compare, plan
from training.cluster import Cluster, Job
from training.settings import presets
from training.settings.config import RunConfig
from training.submit import submit
from training.worker import work
from transom.errors import SpecError

pytest.importorskip("submitit")

HERE = Path(__file__).resolve().parent
BODY = "swin_t/stages=2/1.dim=8/1.heads=2/2.dim=16/2.heads=2/1.depth=1/2.depth=1"
PALE = f"{BODY}/1=pale:size=2"
DATA = "order:train=64,test=40"
LOCAL = Cluster(kind="local")


def runs_of(seeds=1, **fields) -> list[RunConfig]:
    fields = {"data": DATA, "budget": "12steps", "batch": 8, "evaluations": 4, **fields}
    return [
        RunConfig(backbone=BODY, seed=seed, recipe=presets.read("micro"), **fields)
        for seed in range(seeds)
    ]


def rows_of(store: Path) -> dict[str, tuple]:
    """What two makings of a run must have in common, by its name."""
    return {
        row["slot"]: (
            row["weights"], row["correct"], row["status"],
            [{**point, "seconds": None} for point in row["curve"]],
        )
        for row in Store(store).read()[0]
        if row["kind"] == "run"
    }  # fmt: skip


def made_here(folder: Path, runs: list[RunConfig]) -> dict[str, tuple]:
    assert work(runs, Store(folder / "here.jsonl"))
    return rows_of(folder / "here.jsonl")


def test_jobs_of_this_machine(tmp_path, capsys):
    store = tmp_path / "runs.jsonl"
    code = compare.main([
        "--backbone", BODY, "--seeds", "2", "--data", DATA, "--budget", "12steps", "--batch", "8",
        "--evaluations", "4", "--store", str(store), "--submit", "local", "--jobs", "2",
    ])  # fmt: skip
    found = capsys.readouterr()
    assert code == 0 and "baseline" in found.out and found.err == ""
    assert rows_of(store) == made_here(tmp_path, runs_of(seeds=2))
    jobs = tmp_path / "runs.jsonl.d" / "jobs"
    assert jobs.stat().st_mode & 0o777 == 0o700
    logs = [path.read_text() for path in jobs.glob("*_log.out")]
    assert len(logs) == 2 and all('{"end": "finished"}' in log for log in logs)


def test_a_failing_job_says_its_last_line_and_its_log(tmp_path):
    runs = runs_of(data=str(tmp_path / "nowhere"))
    with pytest.raises(SpecError, match="nowhere") as error:
        submit(runs, tmp_path / "runs.jsonl", jobs=1, cluster=LOCAL)
    assert re.fullmatch(r"job \d+: .*nowhere.* \(log: .*/jobs/\d+_0_log.err\)", str(error.value))
    log = str(error.value).partition("(log: ")[2].rstrip(")")
    assert "SpecError" in Path(log).read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--submit", "local"], "give --store"),
        (["--partition", "gpu"], "--partition gpu: is for the jobs of --submit"),
        (["--minutes", "5"], "--minutes 5: is for the jobs of --submit"),
        (["--submit", "local", "--store", "S", "--partition", "gpu"], "is for --submit slurm"),
        (["--submit", "local", "--store", "S", "--gpus-per-job", "2"], "needs --device cuda"),
        (["--submit", "local", "--store", "S", "--device", "cuda:1"], "give --device cuda"),
        (["--submit", "slurm", "--store", "S"], "no sbatch and srun here"),
    ],
)
def test_options_that_do_not_go_together(argv, said, monkeypatch):
    monkeypatch.setenv("PATH", str(HERE))
    with pytest.raises(SpecError, match=said) as error:
        compare.main(["--backbone", BODY, *argv])
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(monkeypatch):
    argv = ["--backbone", BODY, "--submit", "local", "--store", "S"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="leave torchrun out"):
        compare.main(argv)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SpecError, match=r"pip install transom\[cluster\]"):
        compare.main(argv)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    jobs = tmp_path / "runs.jsonl.d" / "jobs"
    jobs.mkdir(parents=True)
    jobs.chmod(0o777)
    with pytest.raises(SpecError, match="others can write to it"):
        submit(runs_of(), tmp_path / "runs.jsonl", jobs=1, cluster=LOCAL)
    assert list(jobs.iterdir()) == []


def test_a_log_is_read_as_it_grows(tmp_path):
    paths = SimpleNamespace(
        stdout=tmp_path / "out", stderr=tmp_path / "err", result_pickle=tmp_path / "result"
    )
    job = Job(SimpleNamespace(paths=paths, job_id="7_0"))
    assert list(job.events()) == [] and "said nothing" in job.complaint()
    paths.stdout.write_text('submitit INFO\n{"slot": "a", "done": 0.5}\n{broken\n{"slot": "b"')
    assert list(job.events()) == [{"slot": "a", "done": 0.5}]
    with paths.stdout.open("a") as file:
        file.write(', "done": 1}\n{"end": "stopped"}\n')
    assert [event.get("slot") for event in job.events()] == ["b", None] and job.end == "stopped"
    with paths.stdout.open("a") as file:
        file.write('{"end": ""}\n')  # it was queued again, and an exception ends it
    paths.result_pickle.touch()
    assert list(job.events()) and job.failed()
    paths.stderr.write_text("Traceback\nValueError: no\x1b such\nsrun: error: exited with code 1\n")
    assert job.complaint() == f"job 7_0: ValueError: no  such (log: {paths.stderr})"


# -- slow: processes that are killed -----------------------------------------------------------


def waiting(condition, seconds=180):
    """The first true value of a function that is asked again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{condition} is not true after {seconds} s")


def workers(store: Path) -> dict[str, int]:
    """Processes of a store's jobs on this machine, by the id of the job."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().split(b"\0")
            pairs = (path / "environ").read_bytes().split(b"\0")
            values = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            ours = b"submitit.core._submit" in line and f"{store}.d/jobs".encode() in line
            if ours and Path(line[0].decode()).name.startswith("python"):
                array = values.get(b"SLURM_ARRAY_JOB_ID")
                single = values.get(b"SLURM_JOB_ID") or values[b"SUBMITIT_LOCAL_JOB_ID"]
                name = array + b"_" + values[b"SLURM_ARRAY_TASK_ID"] if array else single
                found[name.decode()] = int(path.name)
    return found


def saved(store: Path, name: str, seed: int) -> bool:
    folder = plan.folder_of(store, f"{name} seed {seed}")
    return any(folder.glob("step-*.safetensors"))


@contextlib.contextmanager
def command(store: Path, *argv: str, environment=None):
    """Context of a running `training.compare`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training.compare", "--data", DATA, "--batch", "8", "--store",
         str(store), "--save-steps", "20", "--evaluations", "10", *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def done(process, code=0, seconds=400) -> tuple[str, str]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == code, err
    return out, err


@pytest.mark.slow
def test_two_processes_of_a_job_make_one_run(tmp_path):
    (run,) = runs_of()
    cluster = Cluster(kind="local", processes=2)
    submit([run], tmp_path / "runs.jsonl", jobs=1, cluster=cluster)
    (row,) = Store(tmp_path / "runs.jsonl").read()[0]
    want = made_here(tmp_path, [run])[run.slot][3]
    assert row["processes"] == 2
    losses = [[point["loss"] for point in curve] for curve in (row["curve"], want)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_a_local_job_is_interrupted_killed_and_at_its_time_limit(tmp_path):
    """To the group of the terminal, as Ctrl-C goes; to a worker; and submitit's signal."""
    store = tmp_path / "runs.jsonl"
    argv = ["--backbone", BODY, "--seeds", "1", "--budget", "600steps", "--submit", "local"]
    with command(store, *argv) as process:
        waiting(lambda: saved(store, BODY, 0))
        os.killpg(process.pid, signal.SIGINT)
        done(process, 130)
        assert workers(store) == {} and saved(store, BODY, 0)
        assert [row["kind"] for row in Store(store).read()[0]] == ["plan"]
    with command(store, *argv, "--resume") as process:
        ((name, first),) = waiting(lambda: workers(store)).items()
        os.kill(first, signal.SIGKILL)
        name, second = waiting(lambda: workers(store).items() - {(name, first)}).pop()
        log = tmp_path / f"runs.jsonl.d/jobs/{name}_0_log.out"
        waiting(lambda: '"done"' in log.read_text())
        os.kill(second, signal.SIGUSR2)
        done(process)
        assert "remaining timeouts" in log.read_text()
        assert log.read_text().count("Starting with") == 2
    assert rows_of(store) == made_here(tmp_path, runs_of(budget="600steps", evaluations=10))


# -- slow: Slurm -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment of a Slurm that runs on this machine alone."""
    if os.getuid():
        pytest.skip("Slurm's daemons are started by root alone")
    if not shutil.which("slurmctld", path="/usr/sbin:/usr/bin") and not shutil.which("apt-get"):
        pytest.skip("Slurm is not installed, and without apt-get it cannot be")
    folder = tmp_path_factory.mktemp("slurm")
    script = [str(HERE / "slurm_here.sh")]
    try:
        found = subprocess.run([*script, "start", str(folder)], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"Slurm does not start: {' '.join(found.stderr.split())[-300:]}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            yield
    finally:
        subprocess.run([*script, "stop", str(folder)], check=False)


def queue() -> dict[str, str]:
    """Unfinished jobs and their states."""
    said = subprocess.check_output(["squeue", "--array", "--noheader", "--format=%i %T"], text=True)
    return dict(line.split() for line in said.splitlines())


@pytest.mark.slow
def test_slurm_four_runs_one_requeued_one_killed(slurm, tmp_path):
    argv = ["--backbone", BODY, PALE, "--seeds", "2", "--budget", "600steps"]
    with command(tmp_path / "local.jsonl", *argv, "--jobs", "2") as process:
        out, _ = done(process)
    want = rows_of(tmp_path / "local.jsonl")
    assert len(want) == 4

    store = tmp_path / "runs.jsonl"
    jobs = ["--submit", "slurm", "--jobs", "2", "--partition", "tests", "--minutes", "60"]
    with command(store, *argv, *jobs) as process:
        waiting(lambda: saved(store, BODY, 0) and saved(store, PALE, 0))
        requeued, killed = sorted(workers(store))
        pid = workers(store)[killed]
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        os.kill(pid, signal.SIGKILL)
        found, err = done(process)
    assert err == ""
    assert rows_of(store) == want
    assert found.splitlines()[2].split()[:6] == out.splitlines()[2].split()[:6]
    folder = tmp_path / "runs.jsonl.d" / "jobs"
    logs = {path.name: path.read_text() for path in folder.glob("*_log.out")}
    assert logs[f"{requeued}_0_log.out"].count("Starting with") == 2
    assert '{"end": "stopped"}' in logs[f"{requeued}_0_log.out"]
    assert logs[f"{killed}_0_log.out"].count("Starting with") == 1 and len(logs) == 3
    assert queue() == {}


@pytest.mark.slow
def test_slurm_signals_a_time_limit_and_the_job_is_queued_again(slurm, tmp_path):
    store = tmp_path / "runs.jsonl"
    argv = ["--backbone", BODY, "--seeds", "1", "--budget", "300steps", "--submit", "slurm"]
    with command(store, *argv) as process:
        waiting(lambda: saved(store, BODY, 0))
        (job,) = workers(store)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        done(process)
    log = (tmp_path / f"runs.jsonl.d/jobs/{job}_0_log.out").read_text()
    assert "remaining timeouts" in log and log.count("Starting with") == 2
    assert rows_of(store) == made_here(tmp_path, runs_of(budget="300steps", evaluations=10))


@pytest.mark.slow
def test_slurm_interrupt_cancels_and_a_resume_goes_on(slurm, tmp_path):
    store = tmp_path / "runs.jsonl"
    argv = ["--backbone", BODY, "--seeds", "3", "--budget", "300steps", "--submit", "slurm"]
    with command(store, *argv) as process:
        waiting(lambda: saved(store, BODY, 0))
        assert len(queue()) == 3  # a job a run; two of them fit
        process.send_signal(signal.SIGINT)
        _, err = done(process, 130)
    assert queue() == {} and saved(store, BODY, 0) and err == ""
    with command(store, *argv, "--resume") as process:
        waiting(lambda: workers(store))
        names = [name.partition("_")[0] for name in workers(store)]
        subprocess.run(["scancel", names[0]], check=True)  # by somebody else: they stay cancelled
        done(process, 130)
    with command(store, *argv, "--resume") as process:
        done(process)
    assert rows_of(store) == made_here(tmp_path, runs_of(3, budget="300steps", evaluations=10))


@pytest.mark.slow
def test_slurm_refuses_in_one_line(slurm, tmp_path):
    cluster = Cluster(kind="slurm", partition="nowhere")
    with pytest.raises(SpecError, match="invalid partition specified: nowhere") as error:
        submit(runs_of(), tmp_path / "runs.jsonl", jobs=1, cluster=cluster)
    assert "\n" not in str(error.value)
    with pytest.raises(SpecError, match=r"job \d+: .*nowhere.*log: "):
        submit(runs_of(data=str(tmp_path / "nowhere")), tmp_path / "runs.jsonl", jobs=1,
               cluster=Cluster(kind="slurm"))  # fmt: skip
