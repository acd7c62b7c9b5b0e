"""`python -m training.compare` as a user calls it: kills, several processes, bad requests."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.results.store import Store
from benchmarks import loop
from training import compare, plan, report
from training.settings import presets
from training.settings.config import RunConfig
from training.worker import lock, work
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
BODY = "swin_t/stages=2/1.dim=8/1.heads=2/2.dim=16/2.heads=2/1.depth=1/2.depth=1"
PALE = f"{BODY}/1=pale:size=2"
DATA = "order:train=64,test=40"
SMALL = ["--data", DATA, "--budget", "12steps", "--batch", "8", "--evaluations", "4"]


def command(*argv, **environment) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.compare", *argv], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, JSON on stdout) of a comparison of two backbones over two seeds, two at a time."""
    store = tmp_path_factory.mktemp("made") / "runs.jsonl"
    done = command("--backbone", BODY, PALE, "--seeds", "2", *SMALL, "--jobs", "2",
                   "--store", str(store), "--format", "json", "--target", "0.01")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bar where stderr is no terminal
    return store, json.loads(done.stdout)


def test_a_comparison(made):
    _, found = made
    assert [row["backbone"] for row in found["rows"]] == [BODY, PALE]
    assert [(run["backbone"], run["seed"]) for run in found["runs"]] == [
        (BODY, 0), (PALE, 0), (BODY, 1), (PALE, 1),
    ]  # fmt: skip
    for row, runs in zip(found["rows"], (found["runs"][::2], found["runs"][1::2]), strict=True):
        want = sum(run["accuracy"] for run in runs) / 2
        assert row["accuracy, %"] == pytest.approx(100 * want, abs=0.01)
        assert row["steps"] == 12 and row["epochs"] == 1.5 and row["steps to 1%"] == 3
        for run in runs:
            assert report.correct_of(run).mean() == run["accuracy"]
            assert len(run["curve"]) == 4 and run["environment"]["torch"]
    assert found["rows"][0]["verdict"] == "baseline"
    assert found["rows"][1]["verdict"] == "inconclusive: 2 of 7 seeds"


def test_what_is_stored_is_not_made_again(made):
    store, found = made
    before = store.read_bytes()
    argv = ["--backbone", BODY, PALE, "--seeds", "2", *SMALL, "--store", str(store)]
    refused = command(*argv)
    assert refused.returncode == 2 and "give --resume to go on" in refused.stderr
    again = command(*argv, "--resume", "--format", "json", "--target", "0.01")
    assert json.loads(again.stdout) == found and store.read_bytes() == before
    shown = command("--table", str(store), "--format", "json", "--target", "0.01")
    assert json.loads(shown.stdout)["rows"] == found["rows"]
    changed = command(*argv[:-6], "--evaluations", "4", "--recipe", "micro:lr=1e-3",
                      "--store", str(store), "--resume", "--budget", "12steps")  # fmt: skip
    assert changed.returncode == 2 and "batch was 8 and is 64" in changed.stderr
    assert len(changed.stderr.splitlines()) == 1


DEADLY = """
import os
from pathlib import Path
from training.loop.run import Run
step = Run.make_step
def deadly(self, *args):
    marker = Path(os.environ["MARKER"])
    if self.step == 8 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    return step(self, *args)
Run.make_step = deadly
"""


def test_a_killed_worker_is_replaced_and_its_run_equal_to_the_bit(made, tmp_path):
    _, found = made
    (tmp_path / "deadly.py").write_text(DEADLY)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = command(
        "--backbone", BODY, "--seeds", "1", *SMALL, "--plugin", "deadly", "--format", "json",
        "--store", str(tmp_path / "runs.jsonl"), "--save-steps", "3",
        PYTHONPATH=path, MARKER=str(tmp_path / "killed"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    (run,) = json.loads(done.stdout)["runs"]
    assert run["weights"] == found["runs"][0]["weights"]
    assert run["curve"] == [
        {**point, "seconds": run["curve"][i]["seconds"]}
        for i, point in enumerate(found["runs"][0]["curve"])
    ]
    left = [p.name for p in (tmp_path / "runs.jsonl.d").rglob("*") if p.is_file()]
    assert left == ["lock"]


def test_an_interrupt_saves_and_a_resume_goes_on(tmp_path):
    store = tmp_path / "runs.jsonl"
    argv = [sys.executable, "-m", "training.compare", "--backbone", BODY, "--seeds", "1", "--data",
            DATA, "--budget", "4000steps", "--batch", "8", "--store", str(store), "--save-steps",
            "5"]  # fmt: skip
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    folder = plan.folder_of(store, f"{BODY} seed 0")
    end = time.monotonic() + 120
    while not list(folder.glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    steps = [int(p.stem[5:]) for p in folder.glob("*.safetensors")]
    assert steps and 5 <= max(steps) < 4000
    assert [row["kind"] for row in Store(store).read()[0]] == ["plan"]


def test_a_run_belongs_to_the_worker_that_holds_its_lock(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    runs = [
        RunConfig(
            backbone=BODY, seed=seed, data=DATA, recipe=presets.read("micro"), budget="2steps",
            batch=4,
        )
        for seed in (0, 1)
    ]
    with lock(plan.folder_of(store.path, runs[0].slot)) as mine:
        assert mine
        assert work(runs, store)
    assert [row["seed"] for row in store.read()[0]] == [1]
    assert work(runs, store)
    assert sorted(row["seed"] for row in store.read()[0]) == [0, 1]


def test_a_run_that_kills_its_workers_is_called_failed(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    run = RunConfig(backbone=BODY, seed=0, data=DATA, recipe=presets.read("micro"),
                    budget="2steps", batch=4)  # fmt: skip
    folder = plan.folder_of(store.path, run.slot)
    folder.mkdir(parents=True)
    (folder / "started").write_text("0 3")
    assert work([run], store)
    (row,) = store.read()[0]
    assert row["status"] == "failed" and "killed 3 times" in row["reason"]
    assert report.table_rows([row], None, None)[0]["not ok"].startswith("1: failed, its process")


TWO = """
import dataclasses, json, sys, torch
from training.data.opening import open_data
from training.loop import drop_path, run as loop, world
from training.settings import presets
from training.settings.config import RunConfig
from pathlib import Path
here = world.join("cpu")
torch.set_num_threads(1)
data = open_data("order:train=64,test=2000")
data = dataclasses.replace(data, test=data.test.subset(torch.arange(1999)))
busy = presets.read("micro:crop=pad,hflip=0.5,mixup=0.4,cutmix=1,drop_path=0.5")
config = RunConfig(backbone="%s", seed=0, data="odd", recipe=busy,
                   budget="10steps", batch=8, evaluations=10)
rows = [loop.Run(config, data, Path(sys.argv[1]), here).run()]
draws = drop_path.set_draws
drop_path.set_draws = lambda modules, seed, **key: draws(modules, seed=seed + here.rank, **key)
rows.append(loop.Run(config, data, Path(sys.argv[1]), here).run())
drop_path.set_draws = draws
hidden = presets.read("micro-simmim:hflip=0.5,drop_path=0.5")
masked = dataclasses.replace(config, recipe=hidden, evaluations=5)
rows.append(loop.Run(masked, data, Path(sys.argv[1]), here).run())
if here.first:
    print(json.dumps(rows))
world.leave()
""" % BODY  # noqa: UP031


def test_two_processes_make_the_run_of_one(tmp_path):
    """Losses within 1e-6 at the same global batch; a depth drawn by each process is far off."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def rows(*argv):
        done = subprocess.run([sys.executable, *argv, str(script), str(tmp_path)], timeout=300,
                              capture_output=True, text=True, env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    one, _, hidden = rows()
    two, apart, both_hidden = rows(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    )
    losses = [[point["loss"] for point in row["curve"]] for row in (one, two, apart)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and two["processes"] == 2
    assert max(abs(a - b) for a, b in zip(losses[0], losses[2], strict=True)) > 1e-4
    assert two["test_images"] == 1999 == len(report.correct_of(two))
    assert two["accuracy"] == report.correct_of(two).sum() / 1999
    assert (report.correct_of(one) == report.correct_of(two)).mean() > 0.98
    losses = [[point["loss"] for point in row["curve"]] for row in (hidden, both_hidden)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert (report.correct_of(hidden) == report.correct_of(both_hidden)).mean() > 0.98


@pytest.mark.slow
def test_a_killed_rank_ends_its_peers_and_the_run_goes_on_to_the_bit(tmp_path):
    """kill -9 of the second of two processes at step 8, after the checkpoint of step 6."""
    (tmp_path / "deadly.py").write_text(DEADLY.replace(
        'marker = Path(os.environ["MARKER"])',
        'marker = Path(os.environ["MARKER"] + ("" if os.environ["RANK"] == "1" else "/no/such"))',
    ).replace("not marker.exists()", "marker.parent.exists() and not marker.exists()"))
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT)]))

    def run(store, *more):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             "2", "-m", "training.compare", "--backbone", BODY, "--seeds", "1", *SMALL,
             "--save-steps", "3", "--store", str(tmp_path / store), *more],
            timeout=300, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path,
                 "MARKER": str(tmp_path / "killed")},
        )  # fmt: skip

    assert run("whole.jsonl").returncode == 0
    killed = run("killed.jsonl", "--plugin", "deadly")
    assert killed.returncode != 0 and (tmp_path / "killed").exists()
    assert not [row for row in Store(tmp_path / "killed.jsonl").read()[0] if row["kind"] == "run"]
    steps = [path.name for path in (tmp_path / "killed.jsonl.d").rglob("step-*.safetensors")]
    assert max(steps) == "step-000000006.safetensors"
    again = run("killed.jsonl", "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    rows = [
        next(row for row in Store(tmp_path / f"{name}.jsonl").read()[0] if row["kind"] == "run")
        for name in ("whole", "killed")
    ]
    assert rows[0]["weights"] == rows[1]["weights"] and rows[0]["processes"] == 2


def test_the_best_rate_is_chosen_on_images_that_are_not_judged(tmp_path):
    base = RunConfig(backbone="", seed=0, data=DATA, recipe=presets.read("micro"),
                     budget="2steps", batch=4)  # fmt: skip
    wanted = plan.Plan(base, (BODY, PALE), 2, (1e-3, 1e-2))
    tuning = wanted.tuning()
    assert len(tuning) == 4 and all(run.tuning and run.seed == plan.TUNING_SEED for run in tuning)
    store = Store(tmp_path / "runs.jsonl")
    assert work(tuning[:1], store)
    (row,) = store.read()[0]
    assert row["test_images"] == 6 and row["tuning"]  # a tenth of the 64 training images
    rows = [
        {**row, "backbone": run.backbone, "lr": run.lr, "status": status, "accuracy": accuracy}
        for run, (status, accuracy) in zip(
            tuning, [("ok", 0.6), ("ok", 0.9), ("ok", 0.7), ("diverged", 0.99)], strict=True
        )
    ]
    assert wanted.best_rates(rows) == {BODY: 1e-2, PALE: 1e-3}
    judged = wanted.judged(wanted.best_rates(rows))
    assert [(run.backbone, run.seed, run.lr) for run in judged] == [
        (BODY, 0, 1e-2), (PALE, 0, 1e-3), (BODY, 1, 1e-2), (PALE, 1, 1e-3),
    ]  # fmt: skip
    assert report.by_backbone(rows) == {}  # none of them is judged


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give --backbone"), (["--backbone", "swin_q"], "no backbone is called 'swin_q'"),
        (["--backbone", BODY, BODY], "is given twice"),
        (["--backbone", BODY, "--budget", "5"], "expected an amount such as"),
        (["--backbone", BODY, "--data", "ordr"], "order"),
        (["--backbone", BODY, "--recipe", "swim"], "did you mean 'swin'"),
        (["--backbone", BODY, "--baseline", "swin_t"], "no --backbone of this comparison"),
        (["--backbone", BODY, "--device", "cuda"], "torch sees no GPU"),
        (["--table", "/nowhere/runs.jsonl"], "holds no runs"),
        (["--backbone", BODY, "--resume"], "give its name"),
        (["--backbone", BODY, "--recipe", "micro:opt=adamq"], "cannot make opt=adamq, such as"),
        (["--backbone", BODY, "--recipe", "micro:auto_augment=randy"], "make auto_augment=randy"),
        (["--backbone", "torchvision:swin_t"], "take 3 channels, not 1"),
        (["--backbone", BODY, "--store", "/nowhere/runs.jsonl"], "No such file"),
        (["--backbone", BODY, "--figure", "curves.txt"], "expected a name ending in"),
    ],
)  # fmt: skip
def test_a_bad_request_is_one_line(argv, said, monkeypatch):
    import torch

    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    with pytest.raises(SpecError, match=said) as error:
        compare.main([*argv, "--seeds", "1"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("argv", [["--lr", "0"], ["--lr", "1e-3,1e-3"], ["--target", "0"],
                                  ["--target", "1.5"], ["--seeds", "0"]])  # fmt: skip
def test_a_bad_option(argv, capsys):
    with pytest.raises(SystemExit) as error:
        compare.main(["--backbone", BODY, *argv])
    assert error.value.code == 2 and "expected" in capsys.readouterr().err


def fake(name, seed, steps, accuracy=1.0, status="ok"):
    """A row whose accuracy reaches 95% after some steps."""
    curve = [
        {"steps": s, "macs": 1000 * s, "seconds": s / 10,
         "accuracy": accuracy if s >= steps else 0.5}
        for s in range(25, 401, 25)
    ]  # fmt: skip
    correct = np.packbits(np.arange(100) < 100 * accuracy)
    import base64

    identity = {"data": "order", "budget": "400steps", "batch": 64, "recipe.name": "micro"}
    return {
        "kind": "run", "slot": f"{name} seed {seed}", "backbone": name, "seed": seed,
        "tuning": False, "status": status, "reason": "", "accuracy": accuracy,
        "correct": base64.b64encode(correct.tobytes()).decode(), "test_images": 100, "classes": 2,
        "steps": 400, "images": 25600, "epochs": 6.25, "macs": 400_000, "seconds": 40.0,
        "macs_per_image": 5, "params": 7, "curve": curve, "identity": identity,
    }  # fmt: skip


@pytest.mark.slow
def test_who_may_not_arrive_does_not_and_pale_does():
    """`order` in small: what the certificate says of an unshifted window holds after training."""
    blocked = "micro_window/1=window:size=4,shift=false/2=window:size=2,shift=false"
    done = command("--backbone", "micro_pale", blocked, "--budget", "300steps", "--seeds", "2",
                   "--evaluations", "12", "--target", "0.95", "--format", "json")  # fmt: skip
    pale, unshifted = json.loads(done.stdout)["rows"]
    assert pale["accuracy, %"] > 95 and pale["steps to 95%"] <= 300
    assert 45 < unshifted["accuracy, %"] < 55 and unshifted["steps to 95%"] == math.inf


@pytest.mark.slow
def test_a_papers_variant_trains_on_folders_with_the_papers_recipe(tmp_path):
    """Everything the Swin recipe turns on (RandAugment, erasing, mixing, stochastic depth)."""
    from PIL import Image

    draws = np.random.default_rng(0)
    for split, count in ("train", 6), ("val", 4):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                sides = draws.integers(60, 90, 2)
                pixels = draws.integers(0, 256, (*sides, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    argv = ["--backbone", "swin_t", "swin_t/3=pale:size=7", "--data", str(tmp_path / "images"),
            "--recipe", "swin", "--img-size", "64", "--batch", "4", "--budget", "2steps",
            "--seeds", "1", "--evaluations", "1", "--format", "json"]  # fmt: skip
    runs = json.loads(command(*argv).stdout)["runs"]
    assert [run["status"] for run in runs] == ["ok", "ok"]
    assert [run["test_images"] for run in runs] == [8, 8] and runs[0]["steps"] == 2


def test_steps_to_a_target_decide_and_a_miss_is_infinite():
    """The published example: pale against token_mlp, cross with two misses, shuffle with six."""
    steps = {
        "pale": [100, 100, 100, 100, 125, 125, 150],
        "token_mlp": [200, 200, 200, 250, 250, 300, 400],
        "cross": [175, 250, 275, 275, 300, math.inf, math.inf],
        "shuffle": [200] + 6 * [math.inf],
    }
    rows = [fake(n, i, s) for n, all_steps in steps.items() for i, s in enumerate(all_steps)]
    found = {row["backbone"]: row for row in report.table_rows(rows, "token_mlp", 0.95)}
    assert [found[n]["steps to 95%"] for n in steps] == [100, 250, 275, math.inf]
    assert found["cross"]["GMACs to 95%"] == 275_000 / 1e9
    assert found["pale"]["s to 95%"] == 10.0
    assert found["pale"]["verdict"] == "better (p = 0.00058)"
    assert found["cross"]["verdict"].startswith("inconclusive: p = ")
    assert found["token_mlp"]["verdict"] == "baseline"
    lines = report.notes(rows, "token_mlp", 0.95)
    assert any("a miss is inf" in line for line in lines)


def test_the_table_is_in_the_order_of_its_plan():
    """Runs are stored as they end, which is in no order where several are made at a time."""
    rows = [{"kind": "plan", "backbones": ["a", "b", "c"]}, fake("b", 0, 100), fake("a", 0, 200)]
    found = report.table_rows(rows, None, None)
    assert [(row["backbone"], row["verdict"]) for row in found] == [
        ("a", "baseline"), ("b", "inconclusive: 1 of 7 seeds"),
    ]  # fmt: skip
    assert list(report.by_backbone(rows[1:])) == ["b", "a"]  # of a store that is older


def test_the_figure_is_drawn(tmp_path, capsys):
    rows = [fake(name, i, 100 * (i + 1)) for name in ("a_b", "$x$") for i in range(3)]
    Store(tmp_path / "runs.jsonl").append(rows)
    out = tmp_path / "curves.svg"
    code = compare.main(["--table", str(tmp_path / "runs.jsonl"), "--figure", str(out)])
    text = out.read_text()
    assert code == 0 and "accuracy" in capsys.readouterr().out and "<svg" in text
    assert text.count("PolyCollection_") == 2  # a band a backbone


def test_the_loop_is_measured_beside_two_others(capsys):
    """One row a loop; their times add up to what the command took, so that each has made steps."""
    start = time.monotonic()
    argv = ["--backbone", BODY, "--batch", "8", "--rounds", "3", "--steps", "2", "--format", "json"]
    assert loop.main(argv) == 0
    took = time.monotonic() - start
    rows = {row["loop"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["bare", "ours", "timm"] and rows["bare"]["cost, %"] == 0
    assert 0 < sum(row["ms"] for row in rows.values()) < 1e3 * took / 2
    for row in rows.values():
        assert row["images/s"] == pytest.approx(8e3 / row["ms"])
