"""The table of where backbones run: what it calls one graph, and its copy in docs/export.md."""

import re
from pathlib import Path

import pytest
from test_compile import Breaks
from tiny import images
from torch import nn

from analysis import portable
from backbones.export import TOLERANCE as LIMITS
from transom.cli import AGREED, DIFFER

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text()


def test_what_leaves_the_graph_is_partial():
    """Falling back to Python is never called compiled."""
    model, inputs = nn.Conv2d(3, 4, 3), [images(2, 3, 16, 24), images(1, 3, 9, 9)]
    assert portable.compiles(model, inputs) == 1
    assert portable.compiles(Breaks(model).eval(), inputs) == "partial"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"compile": 1, "pt2 fixed": 0.0, "onnx fixed": 9e-5, "onnx batch": "no"}, AGREED),
        ({"compile": 1, "pt2 fixed": 9e-5}, DIFFER),
        ({"compile": 1, "onnx fixed": float("inf")}, DIFFER),
        ({"compile": "differs", "pt2 fixed": 0.0}, DIFFER),
    ],
)
def test_exit_code_of_a_difference(row, code, monkeypatch, capsys):
    monkeypatch.setattr(portable, "row_of", lambda name, text: {"family": name, **row})
    assert portable.main(["--backbone", "swin_t", "--format", "csv"]) == code
    assert "swin_t" in capsys.readouterr().out


def test_a_refusal_keeps_its_row_and_reason(monkeypatch):
    def refuse(*_):
        raise portable.SpecError("swin_t: window: a dynamic size: no")

    monkeypatch.setattr(portable, "compiles", lambda *_: 1)
    monkeypatch.setattr(portable.export, "program", refuse)
    row = portable.row_of("Swin", f"swin_t/{portable.SMALL}")
    assert row["pt2 batch,size"] == "no" and "window: a dynamic size" in row["note"]
    assert portable.within(row)


def rows_of_the_readme():
    lines = PAGE.partition("| family")[2].splitlines()
    heads = ["family", *(cell.strip() for cell in lines[0].split("|")[1:-1])]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows if len(row) == len(heads)}


def test_the_readme_has_every_family():
    rows = rows_of_the_readme()
    assert list(rows) == list(portable.FAMILIES)
    assert all(int(row["compile"]) <= 3 for row in rows.values())
    for row in rows.values():
        found = {name: float(cell) for name, cell in row.items() if name.split()[0] in LIMITS}
        assert len(found) == 6
        assert all(value <= LIMITS[name.split()[0]] for name, value in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "Swin"])
def test_the_readme_says_what_the_command_finds(name):
    """The same yes and no, and pt2 equal to the bit; ONNX columns where it is installed."""
    found = portable.row_of(name, f"{portable.FAMILIES[name]}/{portable.SMALL}")
    said = rows_of_the_readme()[name]
    assert int(said["compile"]) == found["compile"] <= 3
    missing = re.search("needs onnx", found["note"] or "")
    for column, value in found.items():
        if column.startswith("pt2"):
            assert value == float(said[column]) == 0
        if column.startswith("onnx") and not missing:
            assert (value == "no") == (said[column] == "no")
