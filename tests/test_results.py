"""From rows to tables: fair pairs only, failures stay and never win, no number stands alone."""

from __future__ import annotations

import random

import pytest

from analysis.results import latency, reporting, summary
from analysis.results.measurement import Measurement
from analysis.results.summary import best, compare, lines
from transom.errors import SpecError

PLACE = {
    "processor": "P", "cores": 2, "cores_usable": 2, "threads": 2, "tf32": "highest",
    "deterministic": False, "governor": None, "torch": "2", "python": "3", "timm": "1",
    "code": "c", "commit": "abc", "commit_dirty": False, "mhz_now": 2000.0,
}  # fmt: skip


def rows_of(
    entry: Measurement, *, median: float = 1.0, processes: int = 10, status: str = "ok",
    group: str = "g", place: dict | None = None, **more,
) -> list[dict]:  # fmt: skip
    """The rows that a run would have stored."""
    found = []
    for process in range(processes):
        samples = [median * (1 + 0.001 * (process + s % 3)) for s in range(10)]
        row = {
            "key": f"{entry}{group}{process}{place}", "group": group, "process": process,
            "kind": "time", "config": entry.to_dict(), "status": status, "reason": "",
            "environment": PLACE | (place or {}), "batch_used": entry.batch, "samples": samples,
            "firsts": samples[:3], "repeats": samples[:3], "unstable": False, "compiled": "off",
            "macs": 10**9, "logits_error": None, "answer_error": 0.0,
        }  # fmt: skip
        found.append(row | more)
    return found


def failed(entry: Measurement, reason: str = "no memory", processes: int = 10) -> list[dict]:
    keep = ("key", "group", "process", "kind", "config", "environment")
    return [
        {key: row[key] for key in keep} | {"status": "failed", "reason": reason}
        for row in rows_of(entry, processes=processes)
    ]


def ours(**fields) -> Measurement:
    return Measurement(**{"kind": "backbone", "what": "swin_t", **fields})


def peer(library: str = "timm", **fields) -> Measurement:
    return Measurement(**{"kind": "peer", "what": "swin_t", "library": library, **fields})


# -- pairs -----------------------------------------------------------------------------------


def test_a_fair_pair_is_judged():
    a, b = lines(rows_of(ours()) + rows_of(peer(), median=1.2, logits_error=1e-7))
    found = compare(a, b)
    assert (found.text, found.mixed) == ("faster", ()) and found.ratio == pytest.approx(1.2)
    assert compare(b, a).text == "slower"


def test_ratios_inside_processes():
    """A machine that gets slower slows both: between processes 30%, inside them 1 to 1.2."""
    a, b = rows_of(ours()), rows_of(peer(), logits_error=0.0)
    for process, (one, two) in enumerate(zip(a, b, strict=True)):
        one["samples"] = [1 + 0.03 * process] * 10
        two["samples"] = [(1 + 0.02 * process) * (1 + 0.03 * process)] * 10
    found = compare(*lines(a + b[:9]))
    assert found.within == pytest.approx((1.08, 1.0, 1.16))
    row = reporting.short(lines(a + b[:9]))[0]
    assert row["in a process"] == "1.080 (1.000 - 1.160)"
    assert compare(*lines(a + failed(peer()))).within is None

    apart = rows_of(peer(), group="h", logits_error=0.0)  # its processes were others
    assert compare(*lines(a + apart), force=True).within is None


ENTRY = {"dtype": "bfloat16", "batch": 8, "layout": "channels_last", "mode": "train",
         "size": (256, 256), "compile": True, "malloc": "keep"}  # fmt: skip
PLACES = {"threads": 1, "tf32": "high", "governor": "powersave", "processor": "Q", "torch": "3",
          "code": "d"}  # fmt: skip
ROW = {"compiled": "partial", "batch_used": 4, "logits_error": 0.2}
WAYS = [*(("entry", k) for k in ENTRY), *(("place", k) for k in PLACES),
        *(("row", k) for k in ROW), ("group", "group")]  # fmt: skip


def other(ways) -> list[dict]:
    """A peer that differs from ours in these ways, too."""
    chosen = {kind: [key for k, key in ways if k == kind] for kind in ("entry", "place", "row")}
    entry = peer(**{key: ENTRY[key] for key in chosen["entry"]})
    place = {key: PLACES[key] for key in chosen["place"]}
    more = {"logits_error": 0.0} | {key: ROW[key] for key in chosen["row"]}
    group = "h" if ("group", "group") in ways else "g"
    return rows_of(entry, median=1.5, place=place, group=group, **more)


def test_no_mixed_comparison_is_unmarked():
    """A hundred tables, each with one to three differences: not compared, or marked with all."""
    chance = random.Random(0)
    tables = [[way] for way in WAYS]
    tables += [chance.sample(WAYS, chance.randint(1, 3)) for _ in range(100 - len(tables))]
    for ways in tables:
        a, b = lines(rows_of(ours()) + other(ways))
        plain, forced = compare(a, b), compare(a, b, force=True)
        assert plain.word == "not compared" and plain.ratio is None and "--force" in plain.why
        assert forced.ratio is not None and len(forced.mixed) >= len({key[:7] for _, key in ways})
        for kind, key in ways:
            said = {"batch_used": "batch", "group": "interleaved", "logits_error": "logits"}
            assert said.get(key, key)[:7] in forced.text, (kind, key, forced.text)
        for row in reporting.full([a, b]) + reporting.short([a, b]):
            assert row["speedup"] is None
        for row in reporting.full([a, b], force=True) + reporting.short([a, b], force=True):
            assert row["speedup"] is None or "mixed" in row["verdict"]


def test_few_or_unstable_processes_are_inconclusive():
    a, b = lines(rows_of(ours(), processes=3) + rows_of(peer(), median=2, processes=3))
    assert compare(a, b).text == "inconclusive: 3 of 10 processes"
    a, b = lines(rows_of(ours(), unstable=True) + rows_of(peer(), median=2))
    assert compare(a, b).text == "inconclusive: unstable"
    assert "unstable in 10 of 10" in reporting.full([a])[0]["note"]


# -- failures --------------------------------------------------------------------------------


def test_failures_stay_and_never_win():
    fast_but_wrong = rows_of(peer("torchvision"), median=0.001, status="invalid", reason="a cache")
    rows = rows_of(ours()) + failed(peer("transformers")) + fast_but_wrong
    rows += rows_of(peer(), median=1.5)
    found = lines(rows)
    assert [x.status for x in found] == ["ok", "failed", "invalid", "ok"]
    winner = best(found[1:])
    assert winner is not None and winner.measurement.library == "timm"
    assert best(found[1:3]) is None
    table = reporting.full(found)
    assert len(table) == 4 and table[1]["ms"] is None and "failed: no memory" in table[1]["note"]
    assert "invalid: a cache" in table[2]["note"] and table[2]["speedup"] is None
    (short,) = reporting.short(found)
    assert short["best peer"] == "timm" and short["speedup"] == pytest.approx(1.5)
    (none,) = reporting.short(found[:3])
    assert none["best peer"] is None and none["verdict"] == "no peer could be compared"


def test_the_reference_is_beside_ours_and_never_ours():
    """The reference first and slower: peers are still judged against what runs by itself."""
    slow = rows_of(ours(backend="reference"), median=3.0)
    found = lines(slow + rows_of(ours()) + rows_of(peer()))
    assert [row["verdict"] for row in reporting.full(found)][:2] == ["faster", None]
    (short,) = reporting.short(found)
    assert short["ms"] == pytest.approx(1e3, rel=0.02) and short["best peer"] == "timm"


def test_a_process_that_failed_is_said():
    rows = rows_of(ours(), processes=9) + failed(ours(), processes=10)[9:]
    (line,) = lines(rows)
    assert line.usable and line.note == "1 of 10 processes failed" and line.summary.processes == 9


def test_a_cache_is_invalid_over_all_processes():
    rows = rows_of(ours(), firsts=[1.0, 1.0, 1.0], repeats=[0.1, 0.1, 0.1])
    (line,) = lines(rows)
    assert line.status == "invalid" and "10 times as long" in line.reason


def test_the_batch_that_was_used_is_shown():
    (line,) = lines(rows_of(ours(batch=8), batch_used=2))
    assert reporting.full([line])[0]["batch"] == "8 -> 2"
    assert reporting.full([line])[0]["img/s"] == pytest.approx(2 / line.summary.median)


def test_the_best_is_by_image():
    """A batch that was halved takes half the time, and is no faster."""
    whole = rows_of(peer("timm", batch=8), median=1.0)
    halved = rows_of(peer("torchvision", batch=8), median=0.6, batch_used=4)
    found = lines([*whole, *halved])
    assert best(found).measurement.library == "timm" == best(found[::-1]).measurement.library


def test_measured_columns_are_in_their_units():
    """Milliseconds, images a second, MiB: of a batch of 4 that takes a second."""
    entry = Measurement(kind="named", what="swin_t", batch=4)
    memory = [{**rows_of(entry, processes=1)[0], "key": "m", "kind": "memory",
               "peak_bytes": 3 * 2**20, "growth_bytes": 2**20}]  # fmt: skip
    (line,) = lines([*rows_of(entry), *memory])
    found = latency._columns(line)
    assert found["latency_ms"] == pytest.approx(1e3 * line.summary.median)
    assert found["latency_iqr"] == pytest.approx(1e3 * line.summary.iqr)
    low, high = (float(part) for part in found["latency_ci"].split(" (")[0].split(" - "))
    assert low <= found["latency_ms"] <= high and low > 900
    assert found["images_per_s"] == pytest.approx(4e3 / found["latency_ms"])
    assert (found["peak_mib"], found["latency_n"]) == (3, "10 x 10")


# -- numbers ---------------------------------------------------------------------------------


def test_no_table_has_a_lone_number():
    """Wherever milliseconds stand, their spread, interval, level and counts do."""
    found = lines(rows_of(ours()) + rows_of(peer(), median=1.2))
    for row in (*reporting.full(found), *reporting.short(found)):
        assert row["ms"] and " - " in row["ci"] and row["level"] == "99.8%"
        assert (row["n"], row["processes"]) == (100, 10)
        assert row.get("p95", 1e9) >= row["ms"] and row.get("iqr", 1) > 0
        assert bool(row.get("its ms")) == bool(row.get("its ci"))
    assert reporting.short(found)[0]["its ms"] == pytest.approx(1.2e3, rel=0.02)
    assert all("iqr" in row and "p95" in row for row in reporting.full(found))


def test_the_share_is_of_the_best_product_of_the_same_process():
    slow, quick = (Measurement(kind="matmul", what=what) for what in ("8x8x8", "9x9x9"))
    rows = rows_of(ours(batch=2), median=1.0)
    rows += rows_of(slow, median=1.0, macs=10**9) + rows_of(quick, median=1.0, macs=4 * 10**9)
    (line,) = lines(rows)
    assert line.share == pytest.approx(2 / 4, rel=1e-3)
    rows += rows_of(ours(mode="train"), median=6.0)
    assert lines(rows)[1].share == pytest.approx(3 / 4 / 6, rel=1e-3)


def test_types_of_one_run_stand_beside_each_other():
    """A share is of the products of its own type, a peer of the same type, and each row of ours
    says how much float32 takes; other runs and other backends do not."""
    half = {"dtype": "bfloat16"}
    rows = rows_of(ours(), median=3.0) + rows_of(ours(**half), median=2.0)
    rows += rows_of(ours(backend="cpu", **half), median=2.0) + rows_of(peer(**half), median=1.0)
    rows += rows_of(Measurement(kind="matmul", what="8x8x8"), median=1.0)
    rows += rows_of(Measurement(kind="matmul", what="8x8x8", **half), median=0.5)
    rows += rows_of(ours(**half), median=1.5, group="h")
    found = lines(rows)
    assert [line.share and round(line.share, 2) for line in found] == [
        pytest.approx(1 / 3, abs=0.01), 0.25, 0.25, 0.5, None,
    ]  # fmt: skip
    wide, own, cpu, apart = reporting.short(found)
    assert own["to float32"].startswith("1.5") and own["speedup"] == pytest.approx(0.5, rel=0.01)
    assert not wide["to float32"] and not wide["best peer"]
    assert not cpu["to float32"] and not apart["to float32"]


def test_memory_joins_its_line():
    row = rows_of(ours())[0] | {"key": "m", "kind": "memory", "peak_bytes": 2**20,
                                "growth_bytes": 5, "batch_used": 1}  # fmt: skip
    for gone in ("samples", "firsts", "repeats", "unstable"):
        del row[gone]
    (line,) = lines([*rows_of(ours()), row])
    assert line.peak_bytes == 2**20 and reporting.full([line])[0]["MiB"] == 1


def test_one_key_counts_once_and_machines_stay_apart():
    rows = rows_of(ours())
    assert lines(rows + rows)[0].summary == lines(rows)[0].summary
    again = rows_of(ours(), median=2.0, unstable=True)  # of the same keys: the first counts
    assert (lines(rows + again)[0].summary, lines(rows + again)[0].unstable) == (
        lines(rows)[0].summary, 0,
    )  # fmt: skip
    both = lines(rows + rows_of(ours(), place={"processor": "Q"}))
    assert len(both) == 2 and reporting.machines(both).count("\n") == 1
    late = lines(rows + rows_of(ours(), place={"mhz_now": 1.0}))
    assert len(late) == 1


def test_an_entry_is_checked():
    for fields in ({"dtype": "float8"}, {"mode": "eval"}, {"batch": 0}, {"layout": "x"}):
        with pytest.raises(SpecError):
            ours(**fields)
    with pytest.raises(SpecError, match="no field 'bach'"):
        summary.from_dict({"kind": "backbone", "what": "x", "bach": 1})
    names = [e.label for e in (ours(), peer(), Measurement(kind="mixer", what="pale"))]
    assert names == ["transom", "timm", "pale"]


def test_a_figure_has_whiskers(tmp_path):
    pytest.importorskip("matplotlib")
    found = lines(rows_of(ours()) + rows_of(peer(), median=1.2) + failed(peer("torchvision")))
    reporting.bars(found, tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    assert text.startswith("<?xml") and text.count("LineCollection") >= 2
