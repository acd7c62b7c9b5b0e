"""Figures in numbers and words: the front against a brute-force search, labels that keep apart,
hollow points, units, panels, and the text beside a figure."""

from __future__ import annotations

import argparse
import importlib
import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import ours, peer, rows_of

from analysis.pictures import draw_front, figure_style
from analysis.results import reporting
from analysis.results.summary import lines
from training import report
from transom.__main__ import ALL
from transom.errors import SpecError

pytest.importorskip("matplotlib")

FEW = st.integers(-3, 3).map(float)  # so that values tie


def row(name: str, macs: float, top1: float | None = None, **more) -> dict:
    source = "a paper" if top1 is not None else None
    return {"model": name, "macs": macs, "params": 2 * macs, "top1": top1, "source": source, **more}


ROWS = [
    row("swin_t", 4.5e9, 81.3), row("cswin_t", 4.3e9, 82.7), row("pale_t", 4.2e9, 83.4),
    row("swin_s", 8.7e9, 83.0), row("pale_s", 9.0e9, 84.3), row("$_odd_", 9.0e9, 84.3),
]  # fmt: skip


# -- the front -------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.lists(st.tuples(FEW, FEW) | st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=12),
    st.tuples(st.booleans(), st.booleans()),
)
def test_the_front_is_what_no_point_dominates(points, less):
    def costs(point):
        return [value if flag else -value for value, flag in zip(point, less, strict=True)]

    def dominates(a, b):
        pairs = list(zip(costs(a), costs(b), strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    wanted = {i for i, b in enumerate(points) if not any(dominates(a, b) for a in points)}
    found = draw_front.front(points, less=less)
    assert set(found) == wanted and len(found) == len(wanted)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_the_line_goes_through_the_front():
    shown, text = draw_front.picture(ROWS, "macs", "accuracy")
    (line,) = [x for x in shown.axes[0].get_lines() if x.get_gid() == "front"]
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [
        (pytest.approx(4.2), 83.4), (pytest.approx(9), 84.3), (pytest.approx(9), 84.3),
    ]  # fmt: skip
    assert "On the front, by macs: pale_t, pale_s, $_odd_." in text


# -- labels and points -----------------------------------------------------------------------


def labels_of(shown) -> list:
    return [x for x in shown.axes[0].texts if (x.get_gid() or "").startswith("label:")]


def crowd(n: int) -> list[dict]:
    """Many models of nearly one cost and accuracy, some of exactly one."""
    return [row(f"a_long_name_of_model_{i}", 4e9 + 1e7 * (i % 7), 81 + 0.02 * (i % 5))
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize("rows", [ROWS, crowd(12), crowd(40)], ids=["few", "12", "40"])
def test_no_two_labels_overlap(rows):
    shown, _ = draw_front.picture(rows, "macs", "accuracy")
    shown.draw_without_rendering()
    boxes = [tuple(text.get_window_extent().extents) for text in labels_of(shown)]
    assert len(boxes) == len(rows)
    met = [pair for pair in itertools.combinations(boxes, 2) if draw_front.overlap(*pair)]
    assert met == []
    room = tuple(shown.bbox.extents)
    assert all(draw_front._inside(box, room) for box in boxes)


def test_labels_at_their_points_would_overlap():
    """Negative control: the boxes of the test above, without being placed."""
    shown, _ = draw_front.picture(crowd(40), "macs", "accuracy")
    for text in labels_of(shown):
        text.set_position((0, 0))
    boxes = [tuple(text.get_window_extent().extents) for text in labels_of(shown)]
    assert any(draw_front.overlap(*pair) for pair in itertools.combinations(boxes, 2))


def test_the_svg_has_every_label_and_writes_the_same_bytes(tmp_path):
    out = tmp_path / "front.svg"
    draw_front.draw(ROWS, "macs", "accuracy", out)
    first = out.read_bytes()
    said = {"".join(x.itertext()).strip() for x in ElementTree.fromstring(first).iter()}
    assert {x["model"] for x in ROWS} <= said
    draw_front.draw(ROWS, "macs", "accuracy", out)
    assert out.read_bytes() == first and not (tmp_path / "front.svg.txt").exists()


def points_of(shown) -> dict[str, bool]:
    """Whether each point is hollow, by its model."""
    found = {}
    for line in shown.axes[0].get_lines():
        kind, _, name = (line.get_gid() or "").partition(":")
        if kind in ("hollow", "filled"):
            assert (line.get_markerfacecolor() == "white") == (kind == "hollow")
            found[name] = kind == "hollow"
    return found


def test_published_numbers_are_hollow():
    counted = [row("swin_t", 4.5e9, 81.3), row("own", 4.4e9, 80.0, second_hand=())]
    assert points_of(draw_front.picture(counted, "macs", "accuracy")[0]) == {
        "swin_t": True, "own": False,
    }  # fmt: skip
    assert points_of(draw_front.picture(counted, "macs", "params")[0]) == {
        "swin_t": False, "own": False,
    }  # fmt: skip
    told = [row("a", 1e9, 80.0, second_hand=("macs",)), row("b", 2e9, 81.0, second_hand=())]
    assert points_of(draw_front.picture(told, "macs", "params")[0]) == {"a": True, "b": False}


@pytest.mark.parametrize(("most", "scale"), [(9.9, "linear"), (10.1, "log")])
def test_over_a_decade_the_axis_is_logarithmic(most, scale):
    shown, _ = draw_front.picture([row("a", 1e9, 80), row("b", most * 1e9, 81)], "macs", "accuracy")
    axes = shown.axes[0]
    assert axes.get_xscale() == scale and axes.get_yscale() == "linear"
    assert axes.get_xlabel() == "multiply-adds of one image, G (less is better)"
    assert axes.get_ylabel() == "ImageNet-1K top-1, % (more is better)"


def test_models_of_one_name_are_told_apart_by_their_size():
    twice = [row("swin_t", 4e9, 81.3, infer_img_size=224), row("swin_t", 6e9, 82, library="timm"),
             row("swin_t", 8e9, 82, infer_img_size=384)]  # fmt: skip
    names = [text.get_text() for text in labels_of(draw_front.picture(twice, "macs", "params")[0])]
    assert names == ["swin_t 224", "timm:swin_t", "swin_t 384"]


@pytest.mark.parametrize(("x", "y", "said"), [
    ("mac", "accuracy", "--x mac: is no column of a figure; did you mean 'macs'?"),
    ("macs", "top", "--y top: is no column"),
    ("macs", "macs", "--y macs: is on the other axis already"),
    ("macs", "latency", "no row has both macs and latency; add --measure"),
    ("macs", "miou", "no row has both macs and miou"),
])  # fmt: skip
def test_a_figure_that_cannot_be_drawn(x, y, said):
    with pytest.raises(SpecError) as error:
        draw_front.picture(ROWS, x, y)
    assert said in str(error.value)
    assert ("--measure" in str(error.value)) == (y == "latency")


# -- words -----------------------------------------------------------------------------------


def test_the_text_names_axes_and_the_best(tmp_path):
    out = tmp_path / "front.png"
    rows = [*ROWS, row("unknown", 5e9)]
    draw_front.draw(rows, "macs", "accuracy", out, describe=True)
    text = (tmp_path / "front.png.txt").read_text()
    assert "Across: multiply-adds of one image, G. Up: ImageNet-1K top-1, %." in text
    assert "least 4.2 (pale_t), most 9 (" in text and "least 81.3 (swin_t), most 84.3 (" in text
    assert "Best in macs: pale_t. Best in accuracy: pale_s." in text
    assert "Left out, without a number: unknown." in text and text.endswith(".\n")


def test_a_figure_has_a_panel_for_each_mode_and_batch(tmp_path):
    """Titles, one legend with every series once, and the text beside it."""
    found = lines([
        row for mode in ("infer", "train") for batch in (1, 8)
        for entry in (ours(mode=mode, batch=batch), peer(mode=mode, batch=batch))
        for row in rows_of(entry, median=1.0 if entry.kind == "backbone" else 2.0)
    ])  # fmt: skip
    out = tmp_path / "f.svg"
    with pytest.MonkeyPatch.context() as patch:
        kept = []
        save = figure_style.save
        patch.setattr(figure_style, "save", lambda shown, *a, **k: kept.append(save(shown, *a, **k)
                                                                        or shown))  # fmt: skip
        reporting.panels(found, out, describe=True)
    (shown,) = kept
    wanted = [f"{mode}, batch {batch}" for mode in ("infer", "train") for batch in (1, 8)]
    assert [axes.get_title(loc="left") for axes in shown.axes] == wanted
    assert [len(axes.patches) for axes in shown.axes] == [2] * 4
    (legend,) = shown.legends
    assert [text.get_text() for text in legend.get_texts()] == ["transom", "timm"]
    text = (tmp_path / "f.svg.txt").read_text()
    assert all(f"Panel: {title}." in text for title in wanted)
    assert "images per second" in text and "(timm  " in text and out.stat().st_size


def test_every_command_that_draws_can_describe():
    """With one help; and it refuses without a figure, before anything else."""
    drawing = []

    def walk(parser: argparse.ArgumentParser, name: str) -> None:
        options = {option: x for x in parser._actions for option in x.option_strings}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, inner in action.choices.items():
                    walk(inner, f"{name} {command}")
        if "--figure" in options or ".png" in str(getattr(options.get("--out"), "help", "")):
            drawing.append(name)
            assert options["--describe"].help == (
                "beside the figure FILE also FILE.txt: what is drawn, in words"
            ), name

    for name, command in ALL.items():
        if command.module not in ("attention", "backbones"):
            walk(importlib.import_module(command.module).build_parser(), name)
    pictures = ("footprint", "masks", "erf", "bias", "attention")
    assert {*drawing} == {
        "compare", "sweep", "train compare", "train study",
        *(f"bench {name}" for name in ("speed", "mixers", "shift", "ablation")),
        *(f"regions {name}" for name in pictures),
    }  # fmt: skip
    for name in drawing:
        if not name.startswith("regions") and name != "train study":
            nothing = ["none"] if name in ("compare", "sweep") else ["--table", "none"]
            with pytest.raises(SpecError, match="--describe: puts the figure into words"):
                importlib.import_module(ALL[name].module).main([*nothing, "--describe"])


def run_of(backbone: str, *accuracies: float) -> dict:
    curve = [{"macs": 1e12 * (i + 1), "accuracy": a} for i, a in enumerate(accuracies)]
    return {"kind": "run", "backbone": backbone, "tuning": False, "curve": curve}


def test_the_text_of_curves(tmp_path):
    rows = [run_of("a", 0.5, 0.75), run_of("a", 0.25, 0.95), run_of("a", 0.375, 0.85),
            run_of("$b", 0.125, 0.625)]  # fmt: skip
    out = tmp_path / "curves.svg"
    report.draw(rows, out)
    assert [*tmp_path.iterdir()] == [out]
    report.draw(rows, out, describe=True)
    assert (tmp_path / "curves.svg.txt").read_text() == (
        "Curves of 2 backbones: the median over seeds in a band of the middle half.\n"
        "Across: multiply-adds of training, T. Up: accuracy, % (median and middle half of seeds).\n"
        "accuracy, % (median and middle half of seeds): least 12.5 ($b), most 85 (a).\n"
        "At the end: a 85, from 80 to 90; $b 62.5, from 62.5 to 62.5.\n"
    )


def test_the_text_of_a_growth(tmp_path):
    found = lines([
        row for side, seconds in ((8, 0.001), (16, 0.004))
        for row in rows_of(ours(kind="mixer", what="window", size=(side, side)), median=seconds)
    ])  # fmt: skip
    reporting.growth(found, tmp_path / "g.svg", describe=True)
    text = (tmp_path / "g.svg.txt").read_text()
    assert "tokens: least 64 (window), most 256 (window)." in text
