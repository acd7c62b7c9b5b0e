"""The comparison: rows that join timm's tables, failures that stay, sorting, columns, sources."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import compare
from analysis.papers import published
from backbones.specs import variants
from transom import table
from transom.errors import SpecError

ROOT = Path(__file__).resolve().parent.parent
TIMM = "timm:swin_tiny_patch4_window7_224"
SMALL = "swin_t/1.depth=1/2.depth=1/3.depth=1/4.depth=1"
BROKEN = """
import torch

class Forward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
    def forward(self, x):
        raise RuntimeError("no way <b>\\x1b[31m")

class Init(torch.nn.Module):
    def __init__(self):
        raise ValueError("=cannot be made")
"""


def rows_of(capsys, *argv: str, code: int = 0) -> list[dict]:
    """The rows of one run in this process, through JSON."""
    assert compare.main([*argv, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)["rows"]


@pytest.fixture(scope="module")
def four():
    """Three of ours and one of timm's at two sizes, by the command, as a pipe sees it."""
    argv = ["--backbone", "swin_t", "cswin_t", "swin_t/3=pale", TIMM, "--img-size", "224", "96x64"]
    done = subprocess.run(
        [sys.executable, "-m", "analysis.compare", *argv, "--format", "json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), "a pipe gets rows, and no progress"
    return json.loads(done.stdout)["rows"]


def test_a_row_for_every_model_and_size(four):
    """Columns are named as timm names them; the numbers of Swin-T are timm's own."""
    names = ["swin_t", "cswin_t", "swin_t/3=pale", "swin_tiny_patch4_window7_224"]
    sizes = [224, "96x64"]
    keys = [(row["model"], row["infer_img_size"]) for row in four]
    assert keys == [(name, size) for name in names for size in sizes]
    assert {row["library"] for row in four} == {"transom", "timm"}
    for row in four:
        assert list(row) == [c for c in compare.COLUMNS if c not in compare.MEASURED]
        assert row["agree"] is True
    for row in (four[0], four[6]):  # ours, and timm's: its results file has 28.29, 4.49, 17.06
        shown = [round(row[c], 2) for c in ("param_count", "infer_gmacs", "infer_macts")]
        assert shown == [28.29, 4.49, 17.06]
        assert row["gflops"] == 2 * row["infer_gmacs"]
    for name, row in (("swin_t", four[0]), ("cswin_t", four[2])):
        exact = variants.get(name)
        assert (row["params"], row["macs"]) == (exact.params, exact.macs)


def test_published_numbers_are_those_of_the_file(four):
    """With their source, for a variant; none for a hybrid, a foreign model or another size."""
    for row in four:
        entry = published.best(row["model"], "imagenet")
        own = entry is not None and row["infer_img_size"] == 224 and row["library"] == "transom"
        assert row["top1"] == (entry["top1"] if own else None)
        if own:
            assert f"{entry['source']}, {entry['pretrain']}" in row["source"]
        if row["model"] not in variants.names():
            given = [row[c] for c in ("top1", "miou", "box_ap", "mask_ap", "source")]
            assert given == [None] * 5
    assert [row["top1"] for row in four[:4]] == [81.2, None, 82.8, None]
    with published.FILE.open() as file:
        raw = list(csv.DictReader(file))
    for row in four[:4:2]:
        same = [r for r in raw if r["backbone"] == row["model"] and r["task"] == "imagenet"]
        assert str(row["top1"]) in {r["top1"] for r in same}


# -- rows that fail --------------------------------------------------------------------------


def test_a_model_that_fails_keeps_its_row(tmp_path, monkeypatch, capsys):
    """With the reason in one line, exit code 1, and the other rows whole."""
    (tmp_path / "broken_models.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    argv = ["--backbone", "broken_models:Forward", SMALL, "broken_models:Init", "--img-size", "64"]
    rows = rows_of(capsys, *argv, code=1)
    assert [row["agree"] for row in rows] == [False, True, False]
    assert rows[0]["note"].startswith("failed: ") and "no way" in rows[0]["note"]
    assert "=cannot be made" in rows[2]["note"]
    assert rows[0]["macs"] is rows[0]["params"] is rows[0]["infer_gmacs"] is None
    assert rows[1]["macs"] > 0
    for style in ("table", "md", "html", "csv", "latex"):
        assert compare.main([*argv, "--format", style]) == 1
        text = capsys.readouterr().out
        assert "no way" in text and (style == "csv" or "\x1b" not in text)
        assert style not in ("html", "md") or "<b>" not in text.replace("\\<b\\>", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--backbone", "swin_tt"], ["'swin_tt'", "did you mean 'swin_t'"]),
        (["--backbone", "swin_t", "swin_t/3=pal"], ["did you mean 'pale'", "column 10"]),
        (["--backbone", "timm:swin_tiny_patch4_window7_22"], ["swin_tiny_patch4_window7_224"]),
        (["--backbone", "no_such_module:X"], ["no_such_module"]),
        (["--backbone", "swin_t", "--columns", "model,top"], ["'top'", "did you mean 'top1'"]),
        (["--backbone", "swin_t", "--columns", ""], ["''"]),
        (["--backbone", "swin_t", "--sort", "modle"], ["'modle'", "did you mean 'model'"]),
        (["--backbone", "swin_t", "--sort=-gmacs"], ["gmacs", "infer_gmacs"]),
    ],
)
def test_a_bad_request_is_one_line(argv, words):
    """SpecError, which the command prints as one line and exit code 2."""
    with pytest.raises(SpecError) as caught:
        compare.main(argv)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message


def test_an_unknown_column_is_exit_two():
    argv = ["-m", "analysis.compare", "--backbone", "swin_t", "--columns", "model,gmac"]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "'gmac'" in done.stderr


# -- order and columns -----------------------------------------------------------------------

MODELS = [SMALL, "swin_t", "axial_t", "swin_s"]  # two without a published accuracy


@pytest.fixture(scope="module")
def counted():
    """Rows of four models, counted once; sorting and columns do not count again."""
    from analysis.models import lookup

    return {name: compare.row_of(lookup.find(name), (224, 224)) for name in MODELS}


@pytest.fixture
def quick(monkeypatch, counted):
    monkeypatch.setattr(compare, "row_of", lambda subject, *a, **k: dict(counted[subject.name]))


@pytest.mark.parametrize("form", ["--sort top1", "--sort -top1", "--sort=-top1", "--sort=top1"])
def test_rows_are_sorted_and_the_missing_stay_last(form, quick, capsys):
    rows = rows_of(capsys, "--backbone", *MODELS, *form.split())
    order = ["swin_t", "swin_s"] if "-top1" not in form else ["swin_s", "swin_t"]
    assert [row["model"] for row in rows] == [*order, SMALL, "axial_t"]
    assert [row["top1"] for row in rows][2:] == [None, None]


@pytest.mark.parametrize("column", ["macs", "model", "infer_gmacs", "agree", "param_count"])
def test_any_column_sorts_both_ways(column, quick, capsys):
    up = [row[column] for row in rows_of(capsys, "--backbone", *MODELS, "--sort", column)]
    down = [row[column] for row in rows_of(capsys, "--backbone", *MODELS, "--sort", "-" + column)]
    assert up == sorted(up) and down == sorted(up, reverse=True)


def test_sizes_of_both_kinds_sort(capsys):
    """A square is a number, an oblong a text; both are in one column."""
    argv = ["--backbone", SMALL, "--img-size", "64", "64x32", "32", "--columns", "infer_img_size"]
    rows = rows_of(capsys, *argv, "--sort", "infer_img_size")
    assert {str(row["infer_img_size"]) for row in rows} == {"32", "64", "64x32"}


def test_only_the_chosen_columns_in_their_order(quick, capsys):
    argv = ["--backbone", *MODELS, "--columns", "macs,model"]
    assert all(list(row) == ["macs", "model"] for row in rows_of(capsys, *argv))
    compare.main([*argv, "--format", "csv"])
    assert capsys.readouterr().out.startswith("macs,model\n")
    compare.main(["--backbone", *MODELS])
    heading = capsys.readouterr().out.splitlines()[0].split()
    # the exact ones are for csv and JSON
    assert heading[:2] == ["model", "library"] and heading.count("params,") == 1


@pytest.mark.parametrize("style", table.REPORT_FORMATS)
def test_every_format_has_every_row(style, quick, counted, capsys, tmp_path):
    """To the terminal and, by its ending, to a file; CSV and JSON to the last digit."""
    ending = {"latex": "tex", "table": "txt"}.get(style, style)
    argv = ["--backbone", *MODELS, "--out", str(tmp_path / f"t.{ending}")]
    assert compare.main(argv) == 0 and capsys.readouterr().out == ""
    text = (tmp_path / f"t.{ending}").read_text()
    compare.main(["--backbone", *MODELS, "--format", style])
    assert capsys.readouterr().out == text
    assert os.listdir(tmp_path) == [f"t.{ending}"]
    rows = list(counted.values())
    if style == "csv":
        assert [row["model"] for row in csv.DictReader(io.StringIO(text))] == MODELS
        for found, row in zip(table.read_csv(text), rows, strict=True):
            assert int(found["macs"]) == row["macs"] and int(found["params"]) == row["params"]
            assert float(found["infer_gmacs"]) == row["infer_gmacs"]
            assert found["top1"] == ("" if row["top1"] is None else str(row["top1"]))
    elif style == "json":
        assert json.loads(text)["rows"] == rows
    else:
        for row in rows:
            assert table.number(row["infer_gmacs"]) in text
            assert row["model"] in text.replace("\\", "").replace("_", "_")
