"""analysis.certify: what no training can give an architecture, and nothing that it can."""

from __future__ import annotations

import doctest
import json
import sys

import pytest
import torch
from torch import nn

import backbones
from analysis import certify as command
from analysis.checking import certificates
from analysis.checking.certificates import CAN, CANNOT, MEANINGS, Certificates, certify
from transom import cli, table
from transom.errors import SpecError

MICRO = (
    "swin_t/stages=2/patch_size=4/img_size=32/in_channels=1/num_classes=2/drop_path=0"
    "/1.dim=16/1.heads=2/1.depth=2/2.dim=32/2.heads=2/2.depth=2"
)
COMPARE = [name for name in MEANINGS if name.startswith("compare_")]
KINDS = ["columns", "rows", "patches"]
ADJACENT = [f"adjacent_{kind}" for kind in KINDS]
HALVES = ["left_right", "top_bottom"]
LINES = ["columns", "rows", "adjacent_columns", "adjacent_rows"]


def micro(mixers: str) -> str:
    """The micro backbone with one pattern of mixers a stage: "window:size=4 window:size=2"."""
    edits, _, pattern = mixers.rpartition("/")
    one, _, two = pattern.partition(" ")
    base = MICRO.replace("num_classes=2/", "") if "num_classes" in edits else MICRO
    return f"{base}{'/' * bool(edits)}{edits}/1={one}/2={two or one}"


UNSHIFTED = "window:size=4,shift=false window:size=2,shift=false"
RULED_OUT = {  # mixers of the two stages: everything that they cannot, by name
    UNSHIFTED: COMPARE + HALVES,
    "token_mlp:size=4,shift=false token_mlp:size=2,shift=false": COMPARE + HALVES,
    "window:size=4 window:size=2": [],
    "full": KINDS + ADJACENT + HALVES,
    "full:position=log_cpb": [],
    "axial": LINES + HALVES,
    "axial:position=log_cpb": [],
    "cross:size=2 cross:size=1": [],
    "pale:size=2": [],
    "pale:size=2,position=log_cpb": [],
    "shuffle:size=4 shuffle:size=2": [],
    "token_mlp:size=4 token_mlp:size=2": [],
    "position=absolute/" + UNSHIFTED: COMPARE,
    "position=cpe/" + UNSHIFTED: [],
    "window:size=4,shift=false,position=none window:size=2,shift=false,position=none":
        COMPARE + ADJACENT + HALVES,
    "window:size=8,shift=false window:size=4,shift=false": [],  # one window
    "num_classes=0/" + UNSHIFTED: COMPARE + HALVES,
    "num_classes=1/" + UNSHIFTED: COMPARE + HALVES,
    "norm=res_post/" + UNSHIFTED: COMPARE + HALVES,
    "stem=overlap/" + UNSHIFTED: [],
}  # fmt: skip


@pytest.mark.parametrize("mixers", RULED_OUT)
def test_what_is_ruled_out_is_what_theory_says(mixers):
    """Exactly these relations are identities, and all others are far from one."""
    found = certify(backbones.create(micro(mixers)), 32)
    assert sorted(found.named("cannot")) == sorted(RULED_OUT[mixers]), found.values
    assert all(found.values[name] > 1e-3 for name in found.named("can")), found.values
    assert found.named("unclear") == [] and list(found.values) == list(MEANINGS)


def test_a_value_is_the_largest_of_all_seeds_and_does_not_depend_on_the_weights_given():
    model = backbones.create(micro("window:size=4 window:size=2"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    one, three = certify(model, 32, seeds=1), certify(model, 32, seeds=3)
    assert all(one.values[name] <= three.values[name] for name in MEANINGS)
    assert one.values != three.values
    nn.init.zeros_(model.head.weight)
    assert certify(model, 32, seeds=1) == one and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()
               if name != "head.weight")  # fmt: skip
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "patch", "cannot"),
    [
        (30, None, COMPARE),  # a rest of 6 pixels, and padded windows
        ("16x32", None, ["compare_left_right", "compare_diagonal", "left_right"]),  # 1x2 windows
        (64, None, COMPARE + HALVES),
        (33, 16, COMPARE + KINDS + ADJACENT),  # a patch is a window; halves are no whole tokens
        (48, None, []),  # three windows: the middle one lies in both halves
    ],
)
def test_other_sizes_are_certified_for_themselves(size, patch, cannot):
    """Windows of 16 pixels on both stages."""
    found = certify(backbones.create(micro(UNSHIFTED)), size, patch=patch, seeds=2)
    assert sorted(found.named("cannot")) == sorted(cannot), found.values


# -- models of others ------------------------------------------------------------------------


class Map(nn.Module):
    """A 1x1 network with a choice of outputs; each pixel by itself."""

    in_chans = 2

    def __init__(self, output="nchw", classes=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, classes, 1)
        )
        self.output = output

    def forward(self, x):
        y = self.body(x)
        first = {"map": y, "pooled": y.mean((2, 3))}
        return {
            "nchw": lambda: y,
            "nhwc": lambda: y.permute(0, 2, 3, 1),
            "tokens": lambda: y.flatten(2).mT,
            "logits": lambda: y.mean((2, 3)),
            "single": lambda: y.mean((1, 2, 3)),
            "dict": lambda: first,
            "second": lambda: (y, {"squares": y.mean((2, 3)) ** 2}),
            "first": lambda: [y.flatten(1), y.mean((2, 3))],
            "constant": lambda: torch.ones(len(x), 2),
            "blind_second": lambda: (y, x.new_ones(len(x), 2)),
            "none": lambda: None,
            "integers": lambda: y.argmax(1),
            "batch": lambda: y.mean((0, 2, 3)),
            "five": lambda: y[..., None],
            "noise": lambda: torch.nn.functional.dropout(y, 0.5, True),
            "mixed": lambda: y - y.mean(0),
            "nan": lambda: y / 0,
            "float32": lambda: y.float().mean((2, 3)),
            "error": lambda: y @ torch.zeros(1, 2, 3, 4, 5),
        }[self.output]()


@pytest.mark.parametrize(
    "output", ["nchw", "nhwc", "tokens", "logits", "single", "dict", "blind_second"]
)
def test_any_output_is_pooled(output):
    """Pixels one by one: a sum over the image, in any order."""
    found = certify(Map(output), "64x96", seeds=2)
    assert found.named("cannot") == list(MEANINGS) and found.patch == 32


def test_the_worst_of_several_outputs_counts():
    second, first = (certify(Map(output), 64, seeds=1) for output in ("second", "first"))
    assert second.named("can") == COMPARE  # squares of sums are no sums; the order stays unseen
    assert first.named("cannot") == COMPARE  # all pixels in order, and their sum


def test_one_class_is_enough():
    assert certify(Map(classes=1), 64, seeds=1).named("can") == []


def test_what_computes_in_float32_is_not_certified():
    found = certify(Map("float32"), 64, seeds=1)
    assert {"columns", "compare_diagonal"} <= set(found.named("unclear")), found.values
    assert found.named("can") == []


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("constant", "net: its output does not depend on the image"),
        ("none", "net: its output holds no logits"),
        ("integers", "net: its output holds no logits"),
        ("batch", r"net: an output \(3,\) is neither logits nor a map"),
        ("five", "is neither logits nor a map"),
        ("noise", "net: its output for an image depends on chance, or on the batch"),
        ("mixed", "net: its output for an image depends on chance, or on the batch"),
        ("nan", "net: its output is NaN or Inf with random weights"),
        ("error", "net: fails on images of 64x64 in float64: RuntimeError: "),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(output, words):
    with pytest.raises(SpecError, match=words) as error:
        certify(Map(output), 64, name="net", seeds=1)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("size", "more", "words"),
    [
        (63, {}, "Map: an image of 63x63 has no two patches of 32 .* least is 64x64, or a smaller"),
        ("64x63", {}, "an image of 64x63 has no two patches"),
        ("a", {}, "img_size='a': expected 7 or 7x14"),
        (64, {"seeds": 0}, "seeds=0"),
        (64, {"patch": 0}, "patch=0"),
    ],
)
def test_a_bad_size_is_refused(size, more, words):
    with pytest.raises(SpecError, match=words):
        certify(Map(), size, **more)


def test_limits_stand_between_rounding_and_relations_that_fail():
    values = dict(zip(MEANINGS, [CANNOT / 2, CANNOT * 2, CAN * 2] + [1.0] * 8, strict=True))
    found = Certificates("net", (8, 8), 4, 1, values)
    assert found.named("cannot") == [COMPARE[0]] and found.named("unclear") == [COMPARE[1]]
    row = command._row(1, found)
    assert (row["compare"], row["columns"]) == ("0.0002", "1")
    assert command._row(1, Certificates("net", (8, 8), 4, 1, {**values, COMPARE[2]: 0.0}))[
        "compare"
    ] == "2e-12?"  # fmt: skip


def test_the_examples_run():
    assert doctest.testmod(certificates).failed == 0


# -- the command -----------------------------------------------------------------------------

NAMES = [micro(UNSHIFTED), micro("full")]


def test_a_row_a_model_and_a_sentence_a_finding(capsys):
    assert command.main([NAMES[0], "--backbone", NAMES[1], "--seeds", "1"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    cells = [line.split() for line in lines[:4]]
    assert cells[0] == ["backbone", *command.COLUMNS]
    assert cells[2][:2] == ["(1)", "cannot"] and cells[2][-2:] == ["cannot"] * 2
    assert cells[3][0] == "(2)" and float(cells[3][1]) > 1e-3 and cells[3][2:] == ["cannot"] * 6
    assert f"(1) {NAMES[0]} at 32x32, patches of 8 pixels, draws: 1" in lines
    words = " ".join(text.split())
    assert "cannot compare two places (left|right or top|bottom or diagonal): the output" in words
    assert "two columns, rows, patches are exchanged (in any places)" in words
    assert words.count("the task order stays at chance") == 2
    assert all(len(line) <= 100 for line in lines if MICRO not in line)


def test_formats(capsys, tmp_path):
    argv = [*NAMES, "--seeds", "1"]
    assert command.main([*argv, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["backbone"] for row in rows] == NAMES
    assert [one["verdict"] for one in rows[0]["relations"]][:3] == ["cannot"] * 3
    assert command.main([*argv, "--out", str(tmp_path / "t.csv")]) == 0
    found = table.read_csv((tmp_path / "t.csv").read_text())
    assert found[1]["cannot"].split() == KINDS + ADJACENT + HALVES
    assert float(found[0]["compare_diagonal"]) < CANNOT and found[0]["img_size"] == "32x32"
    assert command.main([*argv, "--format", "md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| backbone") and len(lines[0]) <= 100
    assert sum(line.startswith("- cannot") for line in lines) == 6


def test_networks_of_others(capsys):
    """timm, torchvision and a callable of a module; a patch is read from timm's features."""
    names = ["timm:swin_tiny_patch4_window7_224", "torchvision:resnet18", "torch.nn:Flatten"]
    assert command.main([*names, "--img-size", "64", "--seeds", "1", "--format", "json"]) == 0
    one, two, three = json.loads(capsys.readouterr().out)["rows"]
    for row in (one, two):
        assert {relation["verdict"] for relation in row["relations"]} == {"can"}
        assert row["patch"] == 32
    assert {r["relation"] for r in three["relations"] if r["verdict"] == "cannot"} == set(COMPARE)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["swin_tt"], "'swin_tt'; did you mean 'swin_t'"),
        (["swin_t", "timm:nothing"], "timm has no model 'nothing'"),
        (["swin_t", "--img-size", "32"], "swin_t: an image of 32x32 has no two patches of 32"),
        (["torch.nn:Linear"], r"torch\.nn:Linear: Linear\(.*\) is called bare"),
        (["broken_here:net"], "broken_here:net: ZeroDivisionError: division by zero"),
        (["leaves_here:net"], "leaves_here:net: cannot be built: bye"),
        (["swin_t", "--plugin", "broken_here"], "--plugin broken_here: ZeroDivisionError"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_two(argv, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_here.py").write_text("1 / 0\n")
    (tmp_path / "leaves_here.py").write_text("def net():\n    raise SystemExit('bye')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match=words):
        command.main(argv)
    assert capsys.readouterr().out == ""


def test_the_exit_code_of_a_bad_request_is_two(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["certify"])
    left = []
    monkeypatch.setattr("os._exit", left.append)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    with pytest.raises(SystemExit) as error:
        cli.run(command.main)
    found = capsys.readouterr().err
    assert error.value.code == 2 and left == [] and found.count("\n") == 1
    assert "name a backbone, such as: python -m analysis.certify swin_t" in found
    monkeypatch.setattr(sys, "argv", ["certify", "swin_tt"])
    cli.run(command.main)
    assert left == [2] and capsys.readouterr().err.count("\n") == 1
