"""Results that survive: kill -9, torn tails, eight writers, full disks, odd bytes, any value."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.results import store
from analysis.results.measurement import Measurement, from_dict, key_of
from analysis.results.store import Store
from transom import table
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *args, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def without_schema(rows):
    return [{key: value for key, value in row.items() if key != "schema"} for row in rows]


# -- values ----------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda k: k != "schema"), VALUES, max_size=5))
def test_every_value_comes_back(row):
    line = store.to_line(row)
    assert line.count(b"\n") == 1 and line.isascii()
    back = store.from_line(line.rstrip(b"\n"))
    assert repr(back) == repr({"schema": store.SCHEMA, **row}) or back == {"schema": 1, **row}


def test_named_values_come_back(tmp_path):
    row = {
        "nan": math.nan, "inf": -math.inf, "none": None, "long": "x" * 100_000,
        "emoji": "\U0001f600", "lines": "a\r\nb\u2028c\x00", "$float": "text",
        "mark": {"$float": "nan"}, "n": 10**30,
    }  # fmt: skip
    Store(tmp_path / "s.jsonl").append([row])
    (back,), problems = Store(tmp_path / "s.jsonl").read()
    assert not problems and math.isnan(back.pop("nan"))
    del row["nan"]
    assert back == {"schema": 1, **row}
    for text in (tmp_path / "s.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_line_is_strict_json_and_new_keys_shift_no_column(tmp_path):
    """csv of rows with other keys: every value under its own heading."""
    rows = [{"a": 1, "config": {"x": 1}}, {"b": 2, "a": 3}, {"config": {"y": [1, 2]}, "c": "=1+1"}]
    Store(tmp_path / "s.jsonl").append(rows)
    back = table.read_csv(store.to_csv(Store(tmp_path / "s.jsonl").read()[0]))
    assert [row["a"] for row in back] == ["1", "3", ""] and back[1]["b"] == "2"
    assert back[0]["config.x"] == "1" and back[2]["config.y"] == "[1, 2]"
    assert back[2]["c"] == "=1+1" and {len(row) for row in back} == {6}


# -- keys ------------------------------------------------------------------------------------


def test_equal_content_has_one_key_in_any_process():
    config = Measurement(kind="backbone", what="swin_t", size=(224, 112)).to_dict()
    turned = dict(reversed(config.items()))
    assert key_of(config) == key_of(turned) == key_of(from_dict(turned).to_dict())
    assert key_of(config) != key_of({**config, "batch": 2})
    code = "import sys, json; from analysis.results.measurement import key_of\n"
    code += "print(key_of(json.loads(sys.argv[1])))"
    for seed in ("1", "2"):
        done = python(code, json.dumps(turned), env={**os.environ, "PYTHONHASHSEED": seed})
        assert done.communicate()[0].decode().strip() == key_of(config)


# -- bytes that are no rows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"schema": 1, "n": ', "whole"), (b"\0" * 4096, "NUL"),
        (b'{"schema":1,"a":"\xff"}', "UTF-8"),
        (b"[1]", "not a row"), (b'{"a": 1}', "schema"), (b"hello", "whole"),
        (b'{"schema": 1}{"schema": 1}', "whole"), (b'{"schema":0}', "migrates"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_costs_no_other(tmp_path, bad, reason):
    path = tmp_path / "s.jsonl"
    Store(path).append([{"n": 1}, {"n": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + bad + b"\n" + whole.replace(b"\n", b"\r\n"))
    before = path.read_bytes()
    rows, problems = Store(path).read()
    assert [row["n"] for row in rows] == [1, 2, 1, 2]
    assert [p.line for p in problems] == [3] and reason in problems[0].reason
    assert path.read_bytes() == before, "a reader rewrites nothing"


def test_nul_before_a_row_is_left_out(tmp_path):
    """A page that was never written before the machine went down, and then a whole row."""
    path = tmp_path / "s.jsonl"
    path.write_bytes(store.to_line({"n": 1}) + b"\0" * 512 + store.to_line({"n": 2}))
    rows, problems = Store(path).read()
    assert [row["n"] for row in rows] == [1, 2] and not problems


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_after_a_torn_tail_lines_do_not_merge(tmp_path, cut):
    path = tmp_path / "s.jsonl"
    Store(path).append([{"n": 1}, {"n": 2, "text": "x" * 20}])
    path.write_bytes(path.read_bytes()[:-cut])
    Store(path).append([{"n": 3}])
    rows, problems = Store(path).read()
    kept = [1, 2, 3] if cut == 1 else [1, 3]  # only the line break was lost
    assert [row["n"] for row in rows] == kept
    assert [p.line for p in problems] == ([] if cut == 1 else [2])


def test_a_newer_schema_is_refused_and_an_older_one_migrated(tmp_path, monkeypatch):
    path = tmp_path / "s.jsonl"
    path.write_text('{"schema": 1, "n": 1}\n{"schema": 2, "n": 2}\n')
    with pytest.raises(SpecError, match=r"s\.jsonl: line 2 has schema 2, this code knows up to 1"):
        Store(path).read()
    monkeypatch.setattr(store, "SCHEMA", 2)
    monkeypatch.setitem(store.MIGRATE, 1, lambda row: {**row, "n": 10 * row["n"]})
    assert [row["n"] for row in Store(path).read()[0]] == [10, 2]
    assert path.read_text().startswith('{"schema": 1, "n": 1}\n')


# -- many processes ----------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from analysis.results.store import Store
path, name, n, width = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for i in range(n):
    Store(path).append([{"writer": name, "i": i, "text": "x" * (i * 997 % width)}])
    print(i, flush=True)
"""


def eight(path: Path, each: int) -> None:
    writers = [python(WRITER, path, name, each, 64_000) for name in range(8)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    rows, problems = Store(path).read()
    assert not problems
    assert sorted((row["writer"], row["i"]) for row in rows) == sorted(
        (str(name), i) for name in range(8) for i in range(each)
    )


def test_eight_writers_do_not_tear(tmp_path):
    eight(tmp_path / "s.jsonl", 30)


@pytest.mark.slow
def test_eight_writers_of_a_thousand_rows(tmp_path):
    eight(tmp_path / "s.jsonl", 1000)


def killed(path: Path, chance: random.Random) -> None:
    writer = python(WRITER, path, "w", 10_000, 20_000)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(chance.random() * 0.03)
    writer.send_signal(signal.SIGKILL)
    told = [first, *writer.stdout.readlines()]
    writer.communicate()
    said = [int(line) for line in told if line.endswith(b"\n")]
    rows, problems = Store(path).read()
    have = [row["i"] for row in rows]
    assert have[: len(said)] == said, "an acknowledged row is lost"
    assert have == list(range(len(have))) and len(have) <= len(said) + 1 and len(problems) <= 1
    Store(path).append([{"i": len(have)}])
    assert [row["i"] for row in Store(path).read()[0]] == [*have, len(have)]


@pytest.mark.parametrize("seed", range(5))
def test_kill_9_loses_no_acknowledged_row(tmp_path, seed):
    killed(tmp_path / "s.jsonl", random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_kill_9_two_hundred_times(tmp_path, seed):
    killed(tmp_path / "s.jsonl", random.Random(seed))


# -- no place ----------------------------------------------------------------------------------


def test_a_full_disk_names_the_path_and_the_free_space():
    with pytest.raises(SpecError, match=r"/dev/full: No space left on device; [\d,]+ MiB are free"):
        Store(Path("/dev/full")).append([{"n": 1}])


def test_a_write_that_ends_half_way_leaves_the_old_rows(tmp_path):
    """A quota in the middle of a row: an error, no half line, and on it goes when there is room."""
    path = tmp_path / "s.jsonl"
    Store(path).append([{"n": 1}])
    before = path.read_bytes()
    code = (
        "import resource, sys; from pathlib import Path; from analysis.results.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "Store(Path(sys.argv[1])).append([{'n': 2, 'text': 'x' * 5000}])"
    )
    failed = python(code, path)
    errors = failed.communicate()[1].decode().splitlines()[-1]
    assert failed.returncode == 1 and str(path) in errors and "MiB are free there" in errors
    assert path.read_bytes() == before
    Store(path).append([{"n": 3}])
    assert [row["n"] for row in Store(path).read()[0]] == [1, 3]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_no_such_folder_and_no_file(tmp_path):
    with pytest.raises(SpecError, match=r"gone.*: No such file or directory"):
        Store(tmp_path / "gone" / "s.jsonl").append([{"n": 1}])
    assert Store(tmp_path / "none.jsonl").read() == ([], [])
    with pytest.raises(SpecError, match="directory"):
        Store(tmp_path).read()


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("s") / "s.jsonl"
    path.write_bytes(data + b"\n" + store.to_line({"n": 1}))
    try:
        rows, _ = Store(path).read()
    except SpecError as error:
        assert "schema" in str(error)
    else:
        assert rows[-1]["n"] == 1
