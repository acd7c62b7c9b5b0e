"""--quick and its line, an interrupt, and one measurement at a time.  Nothing here depends on how
long anything takes, or on what else this machine measures."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.results import lock, session
from analysis.results.measurement import Measurement
from analysis.results.store import Store
from benchmarks import ablation, kernel, loop, mixers, options, shift, speed
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
ENTRY = Measurement(kind="backbone", what="swin_t")
OTHER = Measurement(kind="backbone", what="swin_s")
pytestmark = pytest.mark.usefixtures("neighbours")


def read(command, *argv: str) -> argparse.Namespace:
    return options.read(command.build_parser(), argv)


@pytest.fixture
def workers(monkeypatch):
    """Workers that answer at once, with what each was asked; an exception in `fails` is raised
    instead, once."""
    asked, fails = [], []

    def work(job):
        asked.append(job)
        if fails and fails[0][0] == len(asked):
            raise fails.pop()[1]
        rows = [
            {"kind": job["task"], "config": config, "status": "ok", "samples": [1.0] * 5,
             "firsts": [1.0], "repeats": [1.0], "unstable": False, "batch_used": 1, "macs": 1}
            for config in job["measurements"]
        ]  # fmt: skip
        return rows, 0, ""

    monkeypatch.setattr(session, "run_worker", work)
    return asked, fails


# -- a quick look ----------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "argv", "said"), [
    (speed, ["--backbone", "swin_t", "--peers", "timm,torchvision"], []),
    (mixers, [], ["grids over 56"]),
    (shift, [], ["flex", "every second stage"]),
    (ablation, [], ["3 of the backbones", "modes train and compile", "batch 8"]),
])  # fmt: skip
def test_a_quick_look_measures_less_and_says_so(command, argv, said, workers, tmp_path):
    """The cuts are of the defaults; each stands in the one line below the table."""
    asked, _ = workers
    out = tmp_path / "t.txt"
    command.main([*argv, "--quick", "--out", str(out)])
    (line,) = [x for x in out.read_text().split("\n") if x.startswith("--quick left out: ")]
    wanted = ["8 of 10 processes of each and 5 of 10 samples", "memory", *said]
    assert all(words in line for words in wanted) and "warm-ups beyond 1 s" in line
    assert {job["task"] for job in asked} == {"time"}
    assert {(job["samples"], job["warm_seconds"], job["seed"]) for job in asked} == {
        (5, 1.0, 0), (5, 1.0, 1),
    }  # fmt: skip
    jobs = [job["measurements"] for job in asked]
    assert len(jobs) == 2 * {speed: 1, mixers: 1, shift: 3, ablation: 1}[command]
    assert all("way=flex" not in config["what"] for job in jobs for config in job)
    sides = {c["size"][0] for job in jobs for c in job if c["kind"] == "mixer"}
    assert sides == {mixers: {28, 56}, shift: {56, 14}}.get(command, set())
    assert sum(config["what"] == "2048x2048x2048" for job in jobs for config in job) == 0


def test_a_usual_run_is_not_cut(workers, tmp_path):
    """What a stored row's key is made of stays, so that rows of before are taken."""
    plan = options.plan_of(read(speed, "--backbone", "swin_t"), [[ENTRY]])
    assert plan == session.Plan(groups=[[ENTRY]], processes=10, samples=10, memory=1,
                                warm_seconds=10.0)  # fmt: skip
    sizes = {m.what: m.kind for m in mixers.groups_of(read(mixers))[0][0]}
    assert "2048x2048x2048" in sizes
    groups = shift.groups_of(read(shift))
    assert len(groups) == 5 and all(len(group) == 5 for group in groups)
    assert len(ablation.groups_of(read(ablation))) == 4 * 3 * 2
    args = read(speed, "--backbone", "swin_t", "--out", str(tmp_path / "t.txt"))
    assert speed.answer(args, [])[0].count("--quick") == 0


def test_what_is_asked_for_is_not_left_out(workers):
    """A value of an option stands, and is not in the line."""
    args = read(ablation, "--quick", "--backbone", "pale_t", "cswin_t", "--mode", "train")
    groups = ablation.groups_of(args)
    assert {group[0].what for group in groups} == {"pale_t", "cswin_t"}
    assert {(group[0].mode, group[0].batch) for group in groups} == {("train", 1)}
    assert args.left_out == ["batch 8"]
    args = read(shift, "--quick", "--method", "cyclic,flex", "--no-stages")
    assert len(shift.groups_of(args)) == 1 and args.left_out == []


def test_words_need_their_evidence(workers, tmp_path):
    """Two processes of a quick look are inconclusive, whatever the ratio."""
    out = tmp_path / "t.csv"
    speed.main(["--backbone", "swin_t", "--peers", "timm", "--quick", "--out", str(out)])
    assert "inconclusive: 2 of 10 processes" in out.read_text()


@pytest.mark.parametrize(("took", "wanted"), [
    ({"swin_t": 10.0, "swin_s": 10.0}, ["swin_t", "swin_s", "swin_t", "swin_s"]),
    ({"swin_t": 20.0, "swin_s": 10.0}, ["swin_t", "swin_s", "swin_s"]),
    ({"swin_t": 22.0, "swin_s": 22.0}, ["swin_t", "swin_s"]),
    ({"swin_t": 23.0, "swin_s": 1.0}, ["swin_t"]),
    ({"swin_t": 90.0, "swin_s": 1.0}, ["swin_t"]),
])  # fmt: skip
def test_no_process_starts_that_has_no_time(took, wanted, monkeypatch, workers):
    """By the longest process of its group; of a group without one, by the longest of all."""
    now = [100.0]
    monkeypatch.setattr(session, "monotonic", lambda: now[0])
    asked, _ = workers
    work = session.run_worker

    def slow(job):
        now[0] += took[job["measurements"][0]["what"]]
        return work(job)

    monkeypatch.setattr(session, "run_worker", slow)
    groups = [[ENTRY], [OTHER]]
    plan = session.Plan(groups=groups, processes=2, memory=0, seconds=45.0)
    rows = session.run(plan, {"code": "c"})
    assert [job["measurements"][0]["what"] for job in asked] == wanted == [
        row["config"]["what"] for row in rows
    ]  # fmt: skip
    left = session.tasks(plan, {"code": "c"}, options.keys_of(rows))
    assert len(left) == 4 - len(wanted)
    line = options.left_out(read(speed, "--backbone", "swin_t", "--quick"), left)
    assert (f"for want of time {len(left)} more process" in line) == bool(left)


# -- an interrupt ----------------------------------------------------------------------------


def test_an_interrupt_says_what_is_stored_and_how_to_go_on(workers, tmp_path, capsys):
    """The command that is printed continues: it measures what is missing, once."""
    asked, fails = workers
    store = tmp_path / "with space.jsonl"
    argv = ["--backbone", "swin_t", "--no-peak", "--processes", "3", "--no-memory", "--store",
            str(store)]  # fmt: skip
    fails.append((3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        speed.main(argv)
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 1
    start = f"interrupted: 2 of 3 processes are stored in {store}; to continue: "
    assert said[0].startswith(start)
    words = subprocess.run(  # as a shell reads it
        ["sh", "-c", f"for w in {said[0].removeprefix(start)}; do printf '%s\\n' \"$w\"; done"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert words[:3] == ["python", "-m", "benchmarks.speed"] and words[3:] == [*argv, "--resume"]
    before = len(asked)
    assert speed.main(words[3:]) == 0
    assert len(asked) - before == 1 and len(Store(store).read()[0]) == 3
    capsys.readouterr()


def test_an_interrupt_without_a_store(workers, capsys):
    workers[1].append((1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        speed.main(["--backbone", "swin_t", "--no-peak"])
    assert capsys.readouterr().err.strip() == (
        "interrupted: nothing is stored; the same with a store, which can continue: "
        "python -m benchmarks.speed --backbone swin_t --no-peak --store rows.jsonl --resume"
    )


def test_an_interrupted_loop(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "rows_of", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.main(["--rounds", "3"])
    assert capsys.readouterr().err.strip() == (
        "interrupted: nothing is stored; from the start: python -m benchmarks.loop --rounds 3"
    )


# -- one at a time ---------------------------------------------------------------------------

HOLDS = """
import sys
from analysis.results import lock
with lock.measuring():
    print("holds", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(script: str = HOLDS):
    """Another process that holds the lock until the block ends."""
    other = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "holds\n"
        yield other
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(lock.HELD_BY, raising=False)
    pytest.importorskip("fcntl")
    return tmp_path


def test_a_second_measurement_is_refused_with_the_name_of_the_first(folder, workers):
    with holder() as other:
        for command, argv in ((speed, ["--backbone", "swin_t"]), (loop, []), (mixers, [])):
            with pytest.raises(SpecError) as error:
                command.main([*argv, "--no-wait"])
            said = str(error.value)
            assert said.startswith(f"--no-wait: another measurement runs on this machine: process "
                                   f"{other.pid}, python")  # fmt: skip
            assert "\n" not in said and len(said) < 250
    assert not workers[0]
    with lock.measuring(wait=False):  # the process has ended
        pass


def test_a_second_measurement_waits_with_one_line(folder, capsys, monkeypatch):
    """It gets the lock once the first is done, here when the line is printed."""
    with holder() as other:
        flock, tries = lock.fcntl.flock, []

        def ends(file, how):
            tries.append(how)
            if len(tries) == 2:
                other.stdin.close()
            return flock(file, how)

        monkeypatch.setattr(lock.fcntl, "flock", ends)
        with lock.measuring():
            assert lock.place().read_text().startswith(f"process {os.getpid()}, ")
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"process {other.pid}, python" in line
        assert "waiting for its end" in line and len(tries) == 2


def test_the_lock_of_a_killed_process_is_free(folder):
    with holder() as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with lock.measuring(wait=False):
            pass


def test_a_worker_has_the_lock_of_its_parent(folder):
    """It does not wait for it; a worker of nobody's does."""
    job = {"task": "time", "measurements": [ENTRY.to_dict()]}
    script = "from analysis.results import lock\nwith lock.measuring(wait=False): print('in')"
    with lock.measuring():
        other = {**os.environ, lock.HELD_BY: "1"}  # inherited from a process that is not its parent
        for env, code in ((session.worker_environment(job), 0), (dict(os.environ), 1), (other, 1)):
            done = subprocess.run(
                [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True
            )
            assert (done.returncode, done.stdout) == (code, "in\n" if not code else ""), done


def test_nothing_is_locked_for_what_is_stored(folder, workers, tmp_path):
    store = tmp_path / "s.jsonl"
    argv = ["--backbone", "swin_t", "--no-peak", "--quick", "--out", str(tmp_path / "t.txt")]
    assert speed.main([*argv, "--store", str(store)]) == 0
    with holder():
        assert speed.main([*argv, "--store", str(store), "--resume", "--no-wait"]) == 0
        assert speed.main(["--table", str(store), "--no-wait", *argv[-2:]]) == 0


def test_where_no_file_can_be_locked_it_measures(folder, monkeypatch):
    monkeypatch.setattr(lock, "place", lambda: folder / "no" / "folder")
    with lock.measuring(wait=False):
        pass
    monkeypatch.setattr(lock, "place", lambda: folder / "link")
    (folder / "link").symlink_to(folder / "target")  # of somebody else's, in a shared folder
    with lock.measuring(wait=False):
        assert not (folder / "target").exists()


def test_an_error_of_the_block_is_its_own(folder):
    with pytest.raises(SpecError, match="of the block") as error, lock.measuring():
        raise SpecError("of the block")
    assert error.value.__context__ is None
    with lock.measuring(wait=False):
        pass


@pytest.mark.parametrize("command", [speed, mixers, shift, ablation, loop, kernel])
def test_every_benchmark_can_refuse_to_wait(command):
    assert read(command, "--no-wait").no_wait and not read(command).no_wait
