"""`import transom`: every function against its command, tables, notebooks, types, examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_public import faults
from torch import nn

import analysis
import attention
import backbones
import transom
from backbones.timm_models import TimmBackbone
from transom.answer import Table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = "swin_t/stages=2/1.depth=1/2.depth=1"
HYBRID = f"{SMALL}/2=pale:size=3"
HOSTILE = "<img src=x onerror=alert(1)>|\x1b[31m\n&"


@pytest.fixture
def printed(capsys):
    """What a command prints as JSON."""

    def read(module: str, *argv: str, code: int = 0) -> dict:
        found = importlib.import_module(module)
        assert found.main([*argv, "--format", "json"]) == code
        return json.loads(capsys.readouterr().out)

    return read


def as_json(answer) -> dict:
    return json.loads(answer.to_json())


# -- names -------------------------------------------------------------------------------------

FUNCTIONS = (
    "create", "count", "compare", "sweep", "complexity", "audit", "check", "measure", "fit",
    "load_weights", "mixers", "variants",
)  # fmt: skip


def test_the_public_names_are_listed():
    assert set(transom.__all__) == {*FUNCTIONS, "SpecError", "Table"} <= set(dir(transom))
    assert all(callable(getattr(transom, name)) for name in transom.__all__)
    assert transom.load_weights is importlib.import_module("backbones.weights").load
    with pytest.raises(AttributeError, match="module 'transom' has no attribute 'nothing'"):
        transom.nothing  # noqa: B018


def test_the_types_are_of_what_is_imported():
    """The stub names every public name, and where the name is taken from."""
    tree = ast.parse((ROOT / "transom" / "__init__.pyi").read_text())
    (names,) = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)]
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert names == transom.__all__ and imported.keys() == set(names)
    for name, (module, theirs) in imported.items():
        assert getattr(importlib.import_module(module), theirs) is getattr(transom, name)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, transom; heavy = {'torch', 'pandas', 'analysis'}; "
        "assert not heavy & sys.modules.keys(); dir(transom), transom.SpecError, transom.Table; "
        "str(transom.variants()), transom.mixers().to_json(); "
        "assert not {'torch', 'pandas'} & sys.modules.keys(); "
        "transom.count; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", [*FUNCTIONS, "Table"])
def test_a_public_name_says_what_it_is(name):
    thing = getattr(transom, name)
    allowed = ["no source"] if name in ("Table", "load_weights") else []
    assert [fault for fault in faults(thing, name) if fault not in allowed] == []


@pytest.mark.parametrize(
    "thing",
    [*(getattr(transom, n) for n in FUNCTIONS if n not in ("create", "load_weights")), Table,
     analysis.Report, backbones.HierarchicalBackbone],
    ids=lambda thing: thing.__name__,
)  # fmt: skip
def test_the_examples_in_docstrings_run(thing):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = [t for t in doctest.DocTestFinder().find(thing, thing.__name__, globs={}) if t.examples]
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert tests and not runner.summarize(verbose=False).failed, "".join(said)


# -- every function, against its command -------------------------------------------------------


def test_count_gives_the_report_of_flops(printed):
    report = transom.count(HYBRID, 64)
    assert report.agree and report.macs_fvcore == report.macs
    assert as_json(report) == printed("analysis.flops", "--backbone", HYBRID, "--img-size", "64")
    blocks = printed("analysis.flops", HYBRID, "--img-size", "64", "--by", "block")["rows"][0]
    assert list(report.table("block")) == blocks["blocks"]
    assert report.to_frame()["macs"].tolist()[-1] == report.macs
    with pytest.raises(transom.SpecError, match=r"by='stages'; did you mean 'stage'\?"):
        report.table("stages")


def test_a_model_is_counted_as_its_name(printed):
    (row,) = as_json(transom.count(backbones.create(HYBRID), 64))["rows"]
    assert row == printed("analysis.flops", HYBRID, "--img-size", "64")["rows"][0]
    assert transom.count(backbones.create(f"{SMALL}/img_size=32"), trace=False).img_size == (32, 32)
    conv = nn.Conv2d(3, 8, kernel_size=1)
    assert transom.count(conv, trace=False).img_size == (224, 224)
    conv.pretrained_cfg = {"input_size": (3, 8, 9)}  # as timm's models have
    report = transom.count(conv)
    assert (report.backbone, report.img_size, report.macs) == ("Conv2d", (8, 9), 8 * 9 * 24)


@pytest.mark.parametrize("name", ["window:size=2x3", "pale:size=3", "full", "cosine"])
def test_a_mixer_is_counted_on_its_map(name, printed):
    """By the mixer's own formula, fvcore and torch, as the complexity command counts it."""
    mixer = attention.create(name, dim=16, heads=4)
    report = transom.count(mixer, (5, 9))
    rows = printed(
        "analysis.complexity", "--mixer", name, "--sizes", "5x9", "--dim", "16"
    )["rows"]  # fmt: skip
    counts = report.macs_formula, report.macs_fvcore, report.macs_torch, report.padding_macs
    assert counts == tuple(rows[0][key] for key in ("exact", "fvcore", "torch", "padding"))
    assert report.agree and report.backbone == str(mixer.config) and report.img_size == (5, 9)
    assert report.params == sum(p.numel() for p in mixer.parameters())


def test_compare_gives_the_rows_of_compare(printed):
    names = [SMALL, HYBRID, "swin_t"]
    table = transom.compare(*names, img_size=[32, "32x64"])
    command = printed("analysis.compare", "--backbone", *names, "--img-size", "32", "32x64")
    measured = {"latency_ms", "latency_iqr", "latency_ci", "latency_n", "images_per_s", "peak_mib"}
    assert as_json(table) == command and len(table) == 6 and not measured & set(table.columns)
    assert transom.compare("swin_t", img_size=(32, 64))[0] == table[5]
    (row,) = transom.compare(backbones.create(HYBRID), img_size=32)
    assert row == table[2]
    (row,) = transom.compare(nn.Conv2d(3, 8, 1), img_size=8)
    assert (row["library"], row["model"], row["macs"]) == (
        "torch.nn.modules.conv", "Conv2d", 64 * 24,
    )  # fmt: skip


def test_a_model_that_fails_has_its_reason_in_its_row():
    (row,) = transom.compare(nn.Linear(3, 3), img_size=8)
    assert row["agree"] is False and row["note"].startswith("failed: ")


def test_measured_columns_are_those_of_compare(printed, monkeypatch):
    """On a clock that is given: two runs of a real one differ."""
    from analysis.results import latency

    def columns(jobs, *, batch, processes, samples, plugins=()):
        assert (processes, samples, list(plugins)) == (2, 4, [])
        values = dict.fromkeys(latency.COLUMNS, 0.0)
        return [
            values | {"latency_ms": batch * i, "measured_note": f"{name} at {size}",
                      "measured": True}
            for i, (name, size) in enumerate(jobs)
        ]  # fmt: skip

    monkeypatch.setattr(latency, "columns", columns)
    shape = {"img_size": 32, "batch": 3, "processes": 2, "samples": 4}
    argv = f"{SMALL} {HYBRID} --img-size 32 --batch 3 --processes 2 --samples 4 --measure"
    command = printed("analysis.compare", *argv.split())
    assert as_json(transom.compare(SMALL, HYBRID, measured=True, **shape)) == command
    table = transom.measure(SMALL, HYBRID, **shape)
    assert table["latency_ms"] == [row["latency_ms"] for row in command["rows"]] == [0, 3]
    assert table["backbone"] == [SMALL, HYBRID] and table["note"][1] == f"{HYBRID} at (32, 32)"
    with pytest.raises(transom.SpecError, match=r"what is measured: Linear\(.* is no name"):
        transom.compare(nn.Linear(1, 1), measured=True)


@pytest.mark.parametrize(
    ("arguments", "options", "argv"),
    [
        ((), {"mixers": ["window", "full"], "values": [56, 112], "dim": 8, "heads": 2, "times": 2},
         "--mixer window full --values 56 112 --dim 8 --heads 2 --times 2"),
        ((SMALL,), {"values": [64, 96], "policy": ["fixed", "scale"], "base_img": 32},
         f"--backbone {SMALL} --values 64 96 --policy fixed scale --base-img 32"),
        ((SMALL,), {"over": "depth", "values": [1, 2], "img_size": 32},
         f"--backbone {SMALL} --over depth --values 1 2 --img-size 32"),
    ],
    ids=["mixers", "policies", "depth"],
)  # fmt: skip
def test_sweep_gives_the_points_of_sweep(arguments, options, argv, printed):
    table = transom.sweep(*arguments, **options)
    assert as_json(table) == printed("analysis.sweep", *argv.split())
    assert len(table.extra["exponents"]) == len(set(table["series"]))


@pytest.mark.parametrize(
    ("arguments", "options", "argv"),
    [
        (("window:size=3", "full"), {"sizes": [4, (5, 9)], "dim": 8, "heads": 2},
         "--mixer window:size=3 full --sizes 4 5x9 --dim 8 --heads 2"),
        (("full",), {"dim": 8}, "--mixer full --dim 8"),
        ((), {"dim": 16}, "--dim 16"),
    ],
)  # fmt: skip
def test_complexity_gives_the_rows_of_complexity(arguments, options, argv, printed):
    table = transom.complexity(*arguments, **options)
    assert as_json(table) == printed("analysis.complexity", *argv.split())


def test_audit_gives_the_ledger_of_audit(printed):
    command = printed("analysis.audit", "--backbone", "swin_t", "cswin_t", "--task", "imagenet")
    assert as_json(transom.audit("swin_t", "cswin_t", task="imagenet")) == command
    assert set(transom.audit("swin_t", task=["coco"])["task"]) == {"coco"}


def test_check_gives_the_verdicts_of_check(printed):
    only = ["any size", "batch"]
    argv = ["window:size=2", "--dim", "8", "--heads", "2", "--only", *only]
    table = transom.check("window:size=2", dim=8, heads=2, only=only)
    assert as_json(table) == printed("analysis.check", *argv) and len(table) == 4
    odd = transom.check("window:size=2", dim=8, heads=2, index=1, only="any size")
    assert odd.rows == (table[2],)


class Mean(nn.Module):
    """The mean over an axis of (b, h, w, c); over the batch it is wrong."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.scale = axis, nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x + self.scale.mean() * x.mean(self.axis, keepdim=True)


def test_a_module_is_checked_and_stays_as_it_is():
    right, wrong = (transom.check(Mean(axis), dim=8, only="batch") for axis in (1, 0))
    assert (right["verdict"], wrong["verdict"]) == (["pass"], ["FAIL"])
    assert (right.extra, wrong.extra) == ({"failed": 0}, {"failed": 1})
    mixer = attention.create("window:size=2", dim=8, heads=2)
    before = {name: tensor.clone() for name, tensor in mixer.state_dict().items()}
    assert transom.check(mixer, only="any size")["verdict"] == ["pass"]
    for name, tensor in mixer.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    with torch.device("meta"):  # a variant's name is near a mixer's
        whole = backbones.create("pale_t")
    (row,) = transom.check(whole, only="batch")
    assert row["candidate"].startswith("pale_t, narrowed") and row["verdict"] == "pass"
    (row,) = transom.check(nn.Conv2d(3, 8, 3), img_size=8, only="batch")
    assert (row["candidate"], row["verdict"]) == ("Conv2d at 8x8", "pass")


def test_fit_gives_the_row_of_fit(printed):
    command = printed("backbones.fit", "swin_t/stages=2", "--params", "3M", code=1)
    table = transom.fit("swin_t/stages=2", params="3M")
    assert as_json(table) == command
    assert transom.fit(backbones.parse("swin_t/stages=2"), params=3e6).rows == table.rows
    fitted = transom.create(table[0]["backbone"])
    assert sum(p.numel() for p in fitted.parameters()) == table[0]["found"]
    argv = ["swin_t/stages=2", "--macs", "1G", "--by", "depth", "--img-size", "64"]
    table = transom.fit("swin_t/stages=2", macs=10**9, by="depth", img_size=64)
    assert as_json(table) == printed("backbones.fit", *argv, code=abs(table[0]["error_%"]) > 1)


def test_listings_give_the_rows_of_their_commands(printed, monkeypatch):
    assert as_json(transom.variants())["rows"] == printed("backbones.__main__")["rows"]
    command = printed("attention.__main__")["rows"]
    table = transom.mixers()
    assert set(table["mixer"]) == {row["mixer"] for row in command}
    for row in command:
        options = [option["name"] for option in row["options"]] or [""]
        assert [found["option"] for found in table if found["mixer"] == row["mixer"]] == options
    bare = [{"mixer": "mine", "source": "me", "options": []}]
    with monkeypatch.context() as patch:
        patch.setattr("attention.__main__.rows", lambda: bare)
        assert transom.mixers()["mixer"] == ["mine"]
    (size,) = [r for r in table if (r["mixer"], r["option"]) == ("pale", "size")]
    assert size["default"] == "7" and size["source"] in {row["source"] for row in command}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: transom.count("swin_x"), "no backbone is called 'swin_x'"),
        (lambda: transom.count(3), "3: expected the name of a model, or a torch module"),
        (lambda: transom.count("swin_t", 0), "img_size=0: expected 7 or 7x14"),
        (lambda: transom.count("swin_t", "a\nb"), r"img_size='a\\nb': expected"),
        (lambda: transom.count(attention.create("full", dim=8, heads=2)), "full: a mixer needs"),
        (lambda: transom.count(nn.Linear(3, 3), 8), "Linear: its forward fails on a 8x8 image"),
        (lambda: transom.count("timm:no_such"), "timm has no model 'no_such'"),
        (lambda: transom.compare(), "name a backbone"),
        (lambda: transom.compare("swin_t", img_size=[32, -1]), "img_size=-1: expected"),
        (lambda: transom.measure("swin_t", samples=True), "samples=True: expected a whole"),
        (lambda: transom.sweep(), "nothing to sweep"),
        (lambda: transom.sweep("swin_t", over="color"), "over='color'; .*one of: resolution"),
        (lambda: transom.sweep("swin_t", policy="grow"), "policy='grow'; .*one of: fixed"),
        (lambda: transom.sweep("swin_t", times=0.5), "times=0.5: expected a factor from 1"),
        (lambda: transom.sweep("swin_t", values=["x"]), "values x: expected"),
        (lambda: transom.complexity("full", every_option=True), "mixers and every_option"),
        (lambda: transom.complexity("pail"), "did you mean 'pale'"),
        (lambda: transom.complexity("full", sizes=["x"]), "sizes='x': expected"),
        (lambda: transom.complexity("full", heads=5), "heads"),
        (lambda: transom.audit("swin_x"), "no backbone is called 'swin_x'"),
        (lambda: transom.audit(task="imagnet"), "task='imagnet'; did you mean 'imagenet'"),
        (lambda: transom.check("window", index=2), "index=2: expected 0"),
        (lambda: transom.check("window", only="bach"), "did you mean 'batch'"),
        (lambda: transom.check(7), "7: expected the name of a model"),
        (lambda: transom.fit("swin_t"), "give one budget: macs or params"),
        (lambda: transom.fit("swin_t", macs=4.5), r"macs 4.5: .* did you mean 4.5G\?"),
        (lambda: transom.fit("swin_t", macs="much"), "macs='much': expected an amount"),
        (lambda: transom.fit("swin_t", macs="4G", by="size"), "by='size'; .*one of: width"),
        (lambda: transom.create("swin_x"), "no backbone is called 'swin_x'"),
    ],
)  # fmt: skip
def test_a_bad_request_is_one_line(call, said):
    with pytest.raises(transom.SpecError, match=said) as error:
        call()
    assert str(error.value).isprintable()


# -- tables ------------------------------------------------------------------------------------

ROWS = (
    {"name": "swin_t", "macs": 4_490_566_656, "top1": 81.2, "agree": True, "gap": 2**60 + 1},
    {"name": HOSTILE, "macs": 7, "top1": None, "agree": None, "gap": None, "note": "=1"},
)


def test_a_table_is_a_sequence_of_rows():
    table = Table(ROWS, notes=("all agree",))
    assert len(table) == 2 and list(table) == [*ROWS] and table[-1] is ROWS[1]
    assert table.columns == ("name", "macs", "top1", "agree", "gap", "note")
    assert table["note"] == [None, "=1"]
    assert repr(table) == "Table(2 rows: name, macs, top1, ...)"
    assert repr(Table(({"a": 1},))) == "Table(1 row: a)" and len(Table(())) == 0
    assert str(table).splitlines()[-1] == "all agree" and "4,490,566,656" in str(table)
    with pytest.raises(transom.SpecError, match=r"no column 'mac'; did you mean 'macs'\?"):
        table["mac"]
    with pytest.raises(transom.SpecError, match="no row 2: the table has 2"):
        table[2]
    with pytest.raises(AttributeError):
        table.rows = ()


def test_a_frame_keeps_integers_and_booleans():
    frame = Table(ROWS).to_frame()
    assert list(frame.columns) == ["name", "macs", "top1", "agree", "gap", "note"]
    kinds = {name: str(frame[name].dtype) for name in ("macs", "top1", "agree", "gap")}
    assert kinds == {"macs": "int64", "top1": "float64", "agree": "boolean", "gap": "Int64"}
    assert int(frame["gap"][0]) == 2**60 + 1 and frame["gap"].isna().tolist() == [False, True]
    assert pd.api.types.is_string_dtype(frame["name"])
    assert Table((), columns=("a",)).to_frame().shape == (0, 1)


def test_a_hostile_name_stays_in_its_cell():
    table = Table(ROWS, title=HOSTILE, notes=(HOSTILE,))
    head = f"<table><thead><tr>{''.join(f'<th>{c}</th>' for c in table.columns)}</tr></thead>"
    for text in (table._repr_html_(), table.to_html()):
        assert "<img" not in text and "&lt;img" in text and "\x1b" not in text
    fragment = table._repr_html_()
    assert fragment.startswith(head) and "<html" not in fragment and "<script" not in fragment
    assert fragment.count("<tr>") == 3 and fragment.count("<td>") == 12
    assert table.to_html().startswith("<!doctype html>")
    assert "\x1b" not in str(table) and "\x1b" not in repr(Table(({HOSTILE: 1},)))
    assert "\\<img" in table.to_markdown() and "\x1b" not in table.to_markdown()
    hostile = transom.count(nn.Conv2d(3, 8, 1), 8, trace=False)
    hostile.backbone = HOSTILE
    assert "<img" not in hostile._repr_html_() and "\x1b" not in repr(hostile)


def test_a_report_is_short_and_whole():
    report = transom.count(SMALL, 32)
    counts = f"{report.params:,} parameters, {report.macs:,} MACs"
    assert repr(report) == f"Report({SMALL} at 32x32: {counts}, counts agree)"
    assert report.trust in str(report) and report.trust in report.to_markdown()
    assert report._repr_html_().startswith("<table>") and report.to_html().startswith("<!doc")
    one = transom.count(SMALL, 32, trace=False)
    one.agree = False
    assert repr(one).endswith(", not confirmed)")


# -- what a decoder asks of a backbone ---------------------------------------------------------


@pytest.mark.parametrize("make", [backbones.create, TimmBackbone])
def test_a_backbone_says_what_its_maps_are(make):
    model = make("cswin_t/stages=3/patch_size=2")
    maps = model.features(torch.zeros(1, 3, 32, 32))
    assert model.out_channels == tuple(level.shape[1] for level in maps)
    assert model.strides == tuple(32 // level.shape[2] for level in maps) == (2, 4, 8)
    assert model.num_features == maps[-1].shape[1]
    modules = dict(model.named_modules())
    for info, channels, stride in zip(
        model.feature_info, model.out_channels, model.strides, strict=True
    ):
        assert (info["num_chs"], info["reduction"]) == (channels, stride)
        assert info["module"] in modules


def test_a_pruned_model_gives_the_channels_that_are_left():
    model = TimmBackbone("swin_t/stages=3")
    model.prune_intermediate_layers([0, 1])
    assert model.num_features == model.head_hidden_size == 192
    model.reset_classifier(5, "avg")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


# -- examples ----------------------------------------------------------------------------------


@pytest.mark.slow  # mypy reads torch: 20 s
def test_the_types_of_the_examples_are_strict(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import transom\n\nx: str = transom.count('swin_t').macs\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    for files, code in ((EXAMPLES, 0), ([wrong], 1)):
        done = subprocess.run(
            [*mypy, "--cache-dir", tmp_path, *files], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
    assert 'expression has type "int", variable has type "str"' in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, capsys):
    """In this process: each would import torch."""
    exec(compile(path.read_text(), path.name, "exec"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) > 1
    assert inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "")
