"""The commands that measure, as a user types them, on models of milliseconds.  Nothing here
depends on how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_measure import BACKENDS, SMALL
from test_results import rows_of

import attention
from analysis import compare
from analysis.results import session
from analysis.results.measurement import Measurement
from analysis.results.store import Store
from backbones.files.storage import WeightsError
from benchmarks import mixers, shift, speed
from transom import table
from transom.errors import SpecError

pytestmark = pytest.mark.usefixtures("neighbours")

ROOT = Path(__file__).resolve().parent.parent
TINY = SMALL.replace("img_size=128", "img_size=64").replace("size=4", "size=2")
LITTLE = ["--processes", "2", "--samples", "3", "--warm-seconds", "0.05"]


def command(module: str, *argv) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", module, *map(str, argv)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)


def shown(capsys, main, *argv) -> tuple[int, dict]:
    """(exit code, the JSON that is printed)."""
    code = main([*map(str, argv), "--format", "json"])
    printed = capsys.readouterr()
    assert printed.err == "", "a pipe gets rows, and no progress"
    return code, json.loads(printed.out)


def stored(path: Path, by: str, seconds: float, **more) -> None:
    """Rows of ten processes, as a run would have made them."""
    kind = {"kind": "backbone"} if by == "transom" else {"kind": "peer", "library": by}
    Store(path).append(rows_of(Measurement(what="swin_t", **kind), median=seconds, **more))


@pytest.fixture
def store(tmp_path) -> Path:
    path = tmp_path / "s.jsonl"
    stored(path, "transom", 0.010)
    stored(path, "timm", 0.013, logits_error=0.0)
    stored(path, "torchvision", 0.012, logits_error=0.0)
    return path


# -- measuring -------------------------------------------------------------------------------


@pytest.fixture
def argv(tmp_path) -> list:
    pytest.importorskip("timm")
    return ["--backbone", TINY, "--peers", "timm", "--batch", "2", "--also", "reference", "--store",
            tmp_path / "own.jsonl", *LITTLE]  # fmt: skip


def test_ours_beside_its_peers_and_resumed(inline, argv, capsys):
    """A row each, on equal logits, with spread, memory and a share; few processes show nothing.
    Resuming measures nothing twice, other settings and other code anew."""
    path, argv = argv[argv.index("--store") + 1], [*argv, "--by", "stage"]
    _, found = shown(capsys, speed.main, *argv)
    rows, names = found["rows"], ["transom", "transom reference", "timm"]
    assert [row["by"] for row in rows] == names
    for row in rows:
        assert row["ms"] > 0 and row["iqr"] >= 0 and (row["n"], row["processes"]) == (6, 2)
        assert row["img/s"] > 0 and row["MiB"] > 0 and row["px"] == "64"
        assert row["% peak"] > 0 or "invalid" in row["note"]
    assert [row["logits"] for row in rows] == [None, None, "equal"]
    for row in rows[1:]:
        assert row["verdict"].startswith(("inconclusive: 2 of 10 proc", "not compared: invalid"))
    for who in names:
        own = [part for part in found["stage"] if part["by"] == who]
        assert len(own) == 5 and own[-1]["part"] == "rest"
        assert sum(part["share_%"] for part in own) == pytest.approx(100)
    before = path.read_bytes()
    assert shown(capsys, speed.main, *argv, "--resume")[1] == found
    assert path.read_bytes() == before
    kept, problems = Store(path).read()
    assert not problems and len({row["key"] for row in kept}) == len(kept)
    # 3 models and 4 products in 2 processes; memory and split of the models
    assert len(kept) == 2 * (3 + 4) + 3 + 3


def test_every_type_of_a_model_is_timed_in_the_same_processes():
    argv = ["--backbone", TINY, "swin_t", "--dtype", "float32,bfloat16", "--mode", "infer,train"]
    groups = speed.groups_of(speed.build_parser().parse_args(argv))
    assert [(group[0].what, group[0].mode) for group in groups] == [
        (what, mode) for what in (TINY, "swin_t") for mode in ("infer", "train")
    ]  # fmt: skip
    for group in groups:
        types = [entry.dtype for entry in group]
        assert types[0] == "float32" and types.count("float32") == types.count("bfloat16") > 2


def test_the_backends_of_ours():
    """A graph is of torch's operators, whatever the backend."""
    argv = ["--backbone", TINY, "--also", "reference,cpu", "--compile", "off,on", "--no-peak",
            "--mode", "infer,train"]  # fmt: skip
    infer, train = speed.groups_of(speed.build_parser().parse_args(argv))
    for group in (infer, train):
        assert [(x.backend, x.compile) for x in group] == [
            ("auto", False), ("reference", False), ("cpu", False), ("auto", True),
        ]  # fmt: skip


def test_other_settings_and_other_code_are_measured_anew():
    group = [Measurement(kind="backbone", what="swin_t")]
    place = {"code": "c", "commit": "a", "load": 1.0}

    def keys(place=place, **more) -> set[str]:
        plan = session.Plan(groups=[group], processes=2, **more)
        return {key for task in session.tasks(plan, place, set()) for key in task.keys.values()}

    assert len(keys()) == 3  # two processes and one for memory
    assert keys() == keys({**place, "commit": "b", "load": 2.0})
    assert not keys() & keys({**place, "code": "d"})
    assert len(keys() & keys(samples=5)) == 1  # memory has no samples
    assert not session.tasks(session.Plan(groups=[group], processes=2), place, keys())


def test_resuming_takes_the_rows_that_are_asked_for(tmp_path, monkeypatch):
    """Of a store with rows of two settings: those of the plan, once each, and the missing ones."""
    entry = Measurement(kind="backbone", what="swin_t")
    place, into = {"code": "c"}, Store(tmp_path / "s.jsonl")
    monkeypatch.setattr(
        session, "run_worker", lambda job: ([{"status": "ok", "by": job["seed"]}], 0, "")
    )

    def run(samples, processes):
        plan = session.Plan(groups=[[entry]], processes=processes, samples=samples, memory=0)
        return session.run(plan, place, into=into, resume=True)

    few, other = run(5, 2), run(10, 1)
    assert [row["process"] for row in few] == [0, 1] and len(other) == 1
    found = run(5, 3)
    assert [row["process"] for row in found] == [0, 1, 2]
    assert [row["key"] for row in found[:2]] == [row["key"] for row in few]
    assert other[0]["key"] not in {row["key"] for row in found}
    assert len(into.read()[0]) == 4


def test_a_pipe_and_a_process_of_its_own(tmp_path):
    """The whole of it once, as a user types it."""
    out = tmp_path / "t.csv"
    done = command("benchmarks.speed", "--backbone", TINY, "--no-peak", "--no-memory",
                   "--processes", "1", "--samples", "2", "--warm-seconds", "0.05", "--threads",
                   "1", "--out", out)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (row,) = table.read_csv(out.read_text())
    assert row["by"] == "transom" and row["processes"] == "1" and row["ci"]


# -- showing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("show", ["full", "short"])
@pytest.mark.parametrize("style", ["table", "md", "csv"])
def test_the_table_of_stored_rows(store, show, style, tmp_path):
    out = tmp_path / "t.txt"
    code = speed.main(["--table", str(store), "--show", show, "--format", style, "--out", str(out)])
    text = out.read_text()
    assert code == 0 and "faster" in text and "inconclusive" not in text
    if style == "csv":
        rows = table.read_csv(text)
        assert all(row["ci"] and row["n"] and row["processes"] for row in rows)
    elif style == "md":
        assert text.splitlines()[1].startswith("|--") and "Mann-Whitney" in text


def test_raw_rows_as_csv_and_a_figure(store, tmp_path):
    pytest.importorskip("matplotlib")
    argv = ["--table", str(store), "--show", "raw", "--format", "csv"]
    assert speed.main([*argv, "--out", str(tmp_path / "raw.csv")]) == 0
    rows = table.read_csv((tmp_path / "raw.csv").read_text())
    assert len(rows) == 30 and {row["config.library"] for row in rows} > {"timm"}
    assert speed.main([*argv, "--figure", str(tmp_path / "f.png"), "--out",
                       str(tmp_path / "x.csv")]) == 0  # fmt: skip
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_a_bad_line_of_a_store_is_named(store, capsys):
    store.write_bytes(store.read_bytes()[:-7])
    assert speed.main(["--table", str(store), "--show", "short"]) == 1
    assert "s.jsonl: line 30 " in capsys.readouterr().err


def test_killed_and_resumed(tmp_path, inline, capsys):
    """kill -9 between rows: what was stored is not measured again, and nothing is twice."""
    store = tmp_path / "s.jsonl"
    argv = ["--backbone", TINY, "--no-peak", "--no-memory", "--processes", "3", "--samples", "2",
            "--warm-seconds", "0.05", "--threads", "1", "--store", str(store)]  # fmt: skip
    running = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed", *argv], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while running.poll() is None and not (store.exists() and store.stat().st_size):
        time.sleep(0.01)
    running.kill()
    running.wait()
    before = store.read_bytes()
    assert Store(store).read()[0], "killed after the first row"
    assert shown(capsys, speed.main, *argv, "--resume")[0] == 0
    rows, _ = Store(store).read()
    assert store.read_bytes().startswith(before)
    assert sorted(row["process"] for row in rows) == [0, 1, 2]


def test_a_peer_that_cannot_be_built_counts_as_failed(inline, capsys, monkeypatch):
    """It stays, and the exit code is 1."""

    def none(*args):
        raise WeightsError("timm is not installed")

    monkeypatch.setattr("backbones.weights.reference_models.reference_model", none)
    argv = ["--backbone", TINY, "--peers", "timm", "--no-peak", "--no-memory", *LITTLE]
    code, found = shown(capsys, speed.main, *argv)
    ours, timm = found["rows"]
    assert code == 1 and ours["ms"] > 0 and timm["ms"] is None
    assert timm["verdict"] == "not compared: failed" and "not installed" in timm["note"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--backbone", "--table"]),
        (["--backbone", "swin_tt"], ["did you mean 'swin_t'"]),
        (["--backbone", "cswin_t", "--peers", "timm"], ["no counterpart of cswin_t", "swin_s"]),
        (["--backbone", "swin_t", "--resume"], ["--resume", "--store"]),
        (["--backbone", "swin_t", "--quick", "--samples", "3"], ["--quick"]),
        (["--backbone", "swin_t", "--by", "stage", "--compile", "on"], ["--by", "compile"]),
        (["--backbone", "swin_t", "--store", "/nowhere/s.jsonl"], ["/nowhere/s.jsonl", "folder"]),
        (["--table", "/nowhere/s.jsonl"], ["no such file"]),
        (["--table", "setup.cfg", "--backbone", "swin_t"], ["--table"]),
        (["--table", "setup.cfg", "--figure", "x.gif"], ["x.gif", ".svg"]),
    ],
)
def test_a_bad_request_is_one_line(argv, words):
    with pytest.raises(SpecError) as caught:
        speed.main(argv)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [
    ["--dtype", "float8"], ["--peers", "tim"], ["--mode", "eval"], ["--batch", "1,0"],
    ["--compile", "maybe"], ["--warm-seconds", "-1"],
])  # fmt: skip
def test_a_bad_option_is_exit_two(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        speed.main(["--backbone", "swin_t", *argv])
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err


# -- the others ------------------------------------------------------------------------------


def test_mixers_grow_as_their_macs_say(inline, capsys, tmp_path):
    argv = ["--mixer", "window", "full", "--grid", "14", "28", "--dim", "8", "--heads", "2"]
    argv += ["--max-macs", "0.004", "--store", str(tmp_path / "rows.jsonl")]
    code, found = shown(capsys, mixers.main, *argv, *LITTLE)
    picture = tmp_path / "growth.svg"
    kept = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert len({row["group"] for row in kept if row["kind"] == "time"}) == 1
    again, stored = shown(
        capsys, mixers.main, "--table", tmp_path / "rows.jsonl", "--figure", picture
    )  # fmt: skip
    drawn = picture.read_text()
    assert all(f'id="{line}:{name}"' in drawn for line in ("time", "macs") for name in
               ("window", "full"))  # fmt: skip
    assert again == code and (stored["rows"], stored["exponents"]) == (
        found["rows"], found["exponents"]
    )  # fmt: skip
    assert [(r["mixer"], r["grid"]) for r in found["rows"]] == [
        ("window", "14"), ("full", "14"), ("window", "28"),
    ]  # fmt: skip
    assert code in (0, 1) and "left out, over --max-macs: full on 28" in found["convention"]
    window, full = found["exponents"]
    assert window["MACs ~ tokens^"] == pytest.approx(1.0) and window["grids"] == 2
    assert window["from"] <= window["time ~ tokens^"] <= window["to"]
    assert window["processes"] == 2 and full["grids"] == 1 and "time ~ tokens^" not in full
    with pytest.raises(SpecError, match="did you mean 'pale'"):
        mixers.main(["--mixer", "pal"])


def test_table_five(inline, capsys, tmp_path):
    """Every method at every stage and for the whole, against the cyclic shift."""
    body = "swin_t/stages=2/1.dim=32/2.dim=64/1.heads=2/2.heads=2/img_size=56/num_classes=4"
    code, found = shown(capsys, shift.main, "--backbone", body, *LITTLE, "--method",
                        "window,cyclic,padding,neighbourhood", "--no-memory",
                        "--store", str(tmp_path / "rows.jsonl"))  # fmt: skip
    rows = found["rows"]
    again, stored = shown(capsys, shift.main, "--table", str(tmp_path / "rows.jsonl"))
    assert again == code and stored["rows"] == rows
    assert code in (0, 1) and len(rows) == 3 * 4
    assert {row["place"] for row in rows} == {"14 tokens, dim 32", "7 tokens, dim 64", "swin_t"}
    for row in rows:
        assert row["ms"] > 0 and row["ci"] and row["processes"] == 2
        assert (row["verdict"] is None) == (row["method"] == "cyclic shift")
    with pytest.raises(SpecError, match="must have windows"):
        shift.main(["--backbone", "full_t"])


def test_the_methods_of_table_five_are_what_they_are_called():
    """Padding takes more windows than a cyclic shift, a neighbourhood more pairs off the map."""
    made = {
        name: attention.create(what.format(size=7), dim=8, heads=2, index=1)
        for name, what in shift.METHODS.items()
    }
    cost = {name: mixer.cost(14, 14).total for name, mixer in made.items()}
    assert cost["window"] == cost["cyclic shift"] < cost["padding"]
    assert cost["neighbourhood"] == cost["flex"] == cost["window"]
    seen = {name: mixer.region(14, 14, (6, 6)) for name, mixer in made.items()}
    assert seen["window"][0, 0] and not seen["cyclic shift"][0, 0]
    for name in ("cyclic shift", "padding", "neighbourhood", "flex"):
        assert seen[name][7, 7], "a connection"
    assert seen["padding"].equal(seen["cyclic shift"]) and not seen["window"][7, 7]


def test_compare_measures(inline, tmp_path, capsys, monkeypatch):
    """Columns beside the counted ones; a model that fails keeps its row, exit code 1."""
    (tmp_path / "odd_models.py").write_text(BACKENDS)
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--backbone", TINY, "odd_models:Small", "odd_models:Raises", "--img-size", "64",
            "--measure", "--batch", "4", "--processes", "2", "--samples", "3"]  # fmt: skip
    code, found = shown(capsys, compare.main, *argv)
    ours, small, fails = found["rows"]
    assert code == 1
    assert ours["latency_ms"] > 0 and ours["latency_n"] == "2 x 3" and "%" in ours["latency_ci"]
    assert ours["peak_mib"] > 0 and ours["images_per_s"] > 0 and ours["macs"] > 0
    assert small["latency_ms"] > 0 and "batch 4 -> 2" in small["note"]
    assert fails["latency_ms"] is None and "not today" in fails["note"]


def test_measured_columns_need_measure():
    done = command("analysis.compare", "--backbone", "swin_t", "--columns", "model,latency_ms")
    assert done.returncode == 2 and "add --measure" in done.stderr
