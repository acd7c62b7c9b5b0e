"""analysis.sweep: exponents, crossings and policies against algebra of this file's own."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from analysis import sweep
from analysis.counting import counters, crossings, paper_formulas, scaling
from analysis.counting.scaling import Series
from analysis.pictures import draw_curves
from attention import SpecError, names, parse
from backbones import parse as parse_backbone
from backbones.specs.stage import StageSpec
from transom import table

ROOT = Path(__file__).resolve().parent.parent
EXPONENTS = {  # of the mixing MACs in the tokens
    "window": 1, "cosine": 1, "shuffle": 1, "token_mlp": 1, "axial": 1.5, "cross": 1.5,
    "pale": 1.5, "full": 2, "sra": 2, "neighbourhood": 1, "halo": 1,
    "axial_deeplab": 1.5, "deformable": 2, "messenger": 1,
}  # fmt: skip
DIVIDING = (224, 448, 896)  # pixels: grids that 7 divides


def run(capsys, *argv):
    code = sweep.main(list(argv))
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def data(capsys, *argv):
    code, out = run(capsys, *argv, "--format", "json")
    assert code == 0
    return json.loads(out)


def alone(text, dim=96, heads=4):
    return Series(text, StageSpec(dim=dim, depth=1, heads=heads, mixers=(parse(text),)))


def texts(*numbers):
    return [str(number) for number in numbers]


# -- exponents ---------------------------------------------------------------------------------


def test_every_mixer_has_its_exponent(capsys):
    """Over the registry: a mixer without a row above fails."""
    found = data(capsys, "--mixer", *names(), "--values", *texts(*DIVIDING), "--dim", "32")
    fits = {fit["series"]: fit for fit in found["exponents"]}
    assert set(fits) == set(EXPONENTS)
    for name, power in EXPONENTS.items():
        assert fits[name]["mixing"] == pytest.approx(power, abs=0.01), name
        padded = "padded by up to 7.34%" if name == "halo" else "no padding"  # beyond the border
        assert fits[name]["fitted"] == f"all 3 points, {padded}"
        assert fits[name]["total"] <= fits[name]["mixing"] + 1e-9
    assert all(row["agree"] and row["macs_formula"] == row["macs_torch"] for row in found["rows"])


@pytest.mark.parametrize(
    ("name", "power"), [("swin_t", 1), ("shuffle_t", 1), ("axial_t", 1.5), ("full_t", 2)]
)
def test_whole_backbones_have_them_too(capsys, name, power):
    argv = ("--backbone", name, "--values", *texts(*DIVIDING, 1000))
    fit = data(capsys, *argv)["exponents"][0]
    assert fit["mixing"] == pytest.approx(power, abs=0.01)
    assert fit["total"] < power or name in ("swin_t", "shuffle_t")


def test_sizes_that_do_not_divide_are_left_out_or_named(capsys):
    both = data(capsys, "--mixer", "window", "--values", "224", "448", "500")
    assert both["exponents"][0]["fitted"] == "2 of 3 points, the sizes that divide"
    assert both["exponents"][0]["mixing"] == pytest.approx(1, abs=1e-9)
    (fit,) = data(capsys, "--mixer", "window", "--values", "225", "500")["exponents"]
    assert fit["fitted"].startswith("all 2 points, padded by up to ")


@pytest.mark.parametrize("power", [0.98, 1.02, 1.5, 2])
def test_a_wrong_exponent_is_seen(monkeypatch, capsys, power):
    """Negative control: mixing that grows otherwise is not within 0.01 of 1, nor does it agree."""
    from attention.softmax.branch import Branch

    cost = Branch.cost

    def planted(self, groups, tokens=0):
        made = cost(self, groups, tokens)
        return made._replace(mixing=round(made.mixing * (groups.tokens / 3136) ** (power - 1)))

    monkeypatch.setattr(Branch, "cost", planted)
    argv = ("--mixer", "window", "--values", *texts(*DIVIDING), "--format", "json")
    code, out = run(capsys, *argv)
    fit = json.loads(out)["exponents"][0]["mixing"]
    assert code == 1 and abs(fit - 1) > 0.01
    assert fit == pytest.approx(power, abs=0.001)


def test_what_torch_counts_differently_is_exit_code_one(monkeypatch, capsys):
    real = counters.on_meta

    def wrong(model, shape):
        tally = real(model, shape)
        tally.macs[""] += 1
        return tally

    monkeypatch.setattr(counters, "on_meta", wrong)
    code, out = run(capsys, "--mixer", "window", "--values", "224")
    assert code == 1 and "1 points: 1 do not agree" in out


def test_a_wrong_paper_formula_is_exit_code_one(monkeypatch, capsys):
    real = paper_formulas.FORMULAS["full"]
    wrong = lambda *a: real(*a)._replace(macs=real(*a).macs + 1)  # noqa: E731
    monkeypatch.setitem(paper_formulas.FORMULAS, "full", wrong)
    assert run(capsys, "--mixer", "full", "--values", "56")[0] == 1


# -- crossings ---------------------------------------------------------------------------------


def full_macs(n, c):
    """Global attention on an n x n grid: q, k, v, output; then scores and weighted values."""
    return 4 * n**2 * c**2 + 2 * n**4 * c


def window_macs(n, c, m):
    padded = -(-n // m) * m
    return 4 * padded**2 * c**2 + 2 * m**2 * padded**2 * c


@pytest.mark.parametrize(("c", "m"), [(96, 7), (32, 4), (64, 8), (96, 12)])
@pytest.mark.parametrize("times", [1, 2, 3.5])
def test_full_against_window_crosses_where_algebra_says(c, m, times):
    """4nc^2 + 2n^2 c = t (4nc^2 + 2m^2 nc) has the root n = 2c(t - 1) + t m^2 tokens: m^2 for
    t = 1.  With padding, the last grid where it does not hold is found by trying all of them."""
    a, b = alone("full", c), alone(f"window:size={m}", c)
    found = crossings.crossing(a, b, "resolution", [4, 56, 448], (224, 224), times)
    assert (found["more"], found["less"]) == ("full", f"window:size={m}")
    assert found["tokens"] == pytest.approx(2 * c * (times - 1) + times * m**2, rel=1e-9)
    last = max(n for n in range(1, 113) if full_macs(n, c) <= times * window_macs(n, c, m))
    assert found["exact"] == 4 * (last + 1)
    assert crossings.crossing(b, a, "resolution", [4, 56, 448], (224, 224), times) == found


def test_the_known_crossings_are_said(capsys):
    _, out = run(capsys, "--mixer", "window", "full", "--values", "28", "56", "448")
    line = next(line for line in out.splitlines() if line.startswith("full costs more"))
    assert "from 64 pixels on, padding included; by the formulas" in line
    assert "the lines cross" not in line  # one fact, one point: the exact one
    assert line.endswith("without padding, from 49 tokens")
    _, out = run(capsys, "--mixer", "window", "full", "--values", "448", "--times", "2")
    assert "full costs 2 times window: from 92 pixels on" in out
    assert "from 290 tokens" in out  # 2 x 96 + 2 x 49


def test_axial_meets_the_window_where_h_plus_w_is_two_windows():
    """hwc(h + w) = 2 m^2 hwc on the square grid of side m^2."""
    found = crossings.crossing(alone("window:size=4"), alone("axial"), "resolution", [28, 448],
                             (224, 224))  # fmt: skip
    assert found["more"] == "axial" and found["tokens"] == pytest.approx(16**2)


def test_backbones_cross_where_every_size_was_tried():
    a, b = (Series(name, parse_backbone(name)) for name in ("swin_t", "full_t"))
    values = [224, 448]
    found = crossings.crossing(a, b, "resolution", values, (224, 224))
    cost = {s.name: [s.at("resolution", n, (1, 1)).macs().total for n in range(4, 449, 4)]
            for s in (a, b)}  # fmt: skip
    fails = [i for i in range(112) if cost["full_t"][i] <= cost["swin_t"][i]]
    assert found["exact"] == 4 * (fails[-1] + 2) == 140
    assert found["sampled"] is None and found["verdict"] == "crosses"
    # every image of one grid costs the same: 137 to 140 pixels
    at = lambda s, n: s.at("resolution", n, (1, 1)).macs().total  # noqa: E731
    assert at(b, 137) > at(a, 137) and at(b, 136) <= at(a, 136)


def test_lines_that_do_not_cross():
    window, shuffle, full = alone("window"), alone("shuffle"), alone("full")
    equal = crossings.crossing(window, shuffle, "resolution", [224, 448], (224, 224))
    assert equal["verdict"] == "equal" and equal["exact"] is None
    never = crossings.crossing(window, shuffle, "resolution", [224, 448], (224, 224), 2)
    assert never["verdict"] == "never"
    always = crossings.crossing(full, window, "size", [4, 7], (448, 448))
    assert always["verdict"] == "always" and always["more"] == "full"


def test_the_sampled_crossing_is_on_the_straight_lines():
    """On the grids 42 and 56, hwc(h + w) against 2 m^2 hwc beside 4hwc^2 each."""
    c, sides = 96, (42, 56)
    axial = [4 * n**2 * c**2 + 2 * n**3 * c for n in sides]
    gaps = [math.log(x / window_macs(n, c, 7)) for x, n in zip(axial, sides, strict=True)]
    assert gaps[0] < 0 < gaps[1]
    slope = (gaps[1] - gaps[0]) / math.log(56 / 42)
    expected = 4 * 42 * math.exp(-gaps[0] / slope)
    found = crossings.crossing(alone("window"), alone("axial"), "resolution", [168, 224], (1, 1))
    assert found["sampled"] == pytest.approx(expected)


def test_size_crosses_exactly():
    """A window of m on a grid that it divides costs as much as full attention at m = the side;
    12 pads 16 to 24, and already costs more."""
    found = crossings.crossing(alone("window"), alone("full"), "size", [4, 8, 16], (64, 64))
    assert found["verdict"] == "equal"
    found = crossings.crossing(alone("window"), alone("full"), "size", [4, 8, 20], (64, 64))
    dear = [m for m in range(1, 21) if window_macs(16, 96, m) <= full_macs(16, 96)]
    assert (found["more"], found["exact"]) == ("window", dear[-1] + 1)


@pytest.mark.parametrize("fails", [[], [1], [50], [3, 17, 18], [49], range(1, 51)])
def test_the_last_failure_is_found(fails):
    fails, asked = set(fails), []

    def holds(low, high):
        asked.append((low, high))
        return not fails.intersection(range(low, high + 1))

    assert crossings.last_failure(holds, 1, 50) == max(fails, default=None)
    assert len(asked) < 30


@pytest.mark.parametrize("name", names())
def test_no_smaller_image_costs_more(name):
    """What lets one comparison settle an interval; odd blocks of a backbone included."""
    whole = Series(
        name, parse_backbone("/".join(["axial_t", *(f"{i}={name}" for i in range(1, 5))]))
    )
    for series in (alone(name), whole):
        costs = [series.at("resolution", 4 * n, (1, 1)).macs().total for n in range(1, 65)]
        assert costs == sorted(costs)


def test_where_there_is_no_exact_point_the_lines_say_one():
    row = {"more": "a", "less": "b", "times": 1, "exact": None, "tokens": None,
           "verdict": "crosses", "sampled": 300.0}  # fmt: skip
    assert crossings.sentence(row, "width", [1, 2]) == "a costs more than b: the lines cross at 300"


@pytest.mark.parametrize("x", [1, 2, 3, 4, 8])
def test_the_ring_lies_on_the_line(x):
    """Costs that grow as x^2 below 2 and as x above."""
    rows = [{"value": n, "macs_formula": cost} for n, cost in ((1, 1), (2, 4), (4, 8), (8, 16))]
    assert draw_curves._between(rows, x) == pytest.approx(x**2 if x < 2 else 2 * x)


# -- policies ----------------------------------------------------------------------------------


def test_policy_scale_differs_from_fixed_as_the_formula_says(capsys):
    """k times the side makes windows of k M: the mixing grows by k^2 more, nothing else does."""
    values = (112, 224, 448, 896)
    argv = ("--mixer", "window", "cross:position=none", "--policy", "fixed", "scale", "--dim", "32")
    rows = data(capsys, *argv, "--values", *texts(*values))["rows"]
    by = {(row["series"], row["value"]): row for row in rows}
    for px in values:
        n, k, c = px // 4, px / 224, 32
        size = round(7 * k) if k >= 1 else 4  # 3.5 rounds up
        fixed, scale = by["window", px], by["window (scale)", px]
        assert scale["size"] == str(size)
        assert scale["macs_formula"] == window_macs(n, c, size)
        assert fixed["macs_formula"] == window_macs(n, c, 7)
        if k >= 1:
            extra = 2 * 49 * (k**2 - 1) * n**2 * c
            assert scale["macs_formula"] - fixed["macs_formula"] == extra
            fixed, scale = (by[f"cross:position=none{s}", px] for s in ("", " (scale)"))
            extra = 7 * (k - 1) * n**2 * c * 2 * n
            assert scale["macs_formula"] - fixed["macs_formula"] == extra


def test_a_backbone_scales_every_size_and_full_attention_none(capsys):
    argv = ("--backbone", "cswin_t", "full_t", "--policy", "fixed", "scale", "--values", "448")
    rows = data(capsys, *argv)["rows"]
    sizes = {row["series"]: row["size"] for row in rows}
    assert sizes == {"cswin_t": "1 2 7", "cswin_t (scale)": "2 4 14", "full_t": ""}
    (row,) = data(capsys, "--mixer", "window:size=8x4", "--policy", "scale", "--base-img",
                  "112x224", "--values", "448")["rows"]  # fmt: skip
    assert row["size"] == "32x8"


# -- other axes --------------------------------------------------------------------------------


def test_size_width_and_depth(capsys):
    found = data(capsys, "--mixer", "window", "--over", "size", "--values", "4", "7", "8", "14")
    assert [row["size"] for row in found["rows"]] == ["4", "7", "8", "14"]
    assert found["exponents"][0]["mixing"] == pytest.approx(2)
    found = data(capsys, "--mixer", "full", "--over", "width", "--img-size", "56x112")
    assert [row["dim"] for row in found["rows"]] == [48, 72, 96, 120, 144, 168, 192]
    assert found["exponents"][0]["mixing"] == pytest.approx(1)
    assert {row["tokens"] for row in found["rows"]} == {14 * 28}
    found = data(capsys, "--backbone", "swin_t", "--over", "depth", "--values", "1", "3")
    assert found["exponents"][0]["mixing"] == pytest.approx(1)
    one, two = (row["macs_formula"] for row in found["rows"])
    fixed = one - (two - one) / 2  # stem, merging, head: what blocks do not cost
    assert 0.04 < fixed / one < 0.05
    tries = scaling.default_values(Series("swin_t", parse_backbone("swin_t")), "width", (1, 1))
    assert [str(factor) for factor in tries] == ["2/3", "1", "4/3", "5/3", "2"]


# -- what comes out ----------------------------------------------------------------------------


def test_csv_and_json_read_back_equal(capsys, tmp_path):
    argv = ("--mixer", "window", "pale:size=7x14", "--values", "60", "224", "--dim", "32")
    rows = data(capsys, *argv)["rows"]
    out = tmp_path / "points.csv"
    assert run(capsys, *argv, "--out", str(out)) == (0, "")
    assert table.read_csv(out.read_text()) == [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]
    code, text = run(capsys, *argv, "--format", "md")
    assert code == 0 and text.startswith("| series") and "\n- pale:size=7x14 costs" in text


def test_the_figure_has_one_labelled_line_per_series(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path, series = tmp_path / "cost.svg", ["window", "full", "pale:size=7"]
    argv = ("--mixer", *series, "--values", "14", "56", "100", "224", "--figure", str(path))
    code, said = run(capsys, *argv)
    assert code == 0
    first, root = path.read_bytes(), ET.parse(path).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == svg + "svg"
    lines = [e.get("id") for e in root.iter(svg + "g") if ":" in (e.get("id") or "")]
    for name in series:
        for panel in ("mixing", "total"):
            assert lines.count(f"{panel}:{name}") == 1
    text = "".join(root.itertext())
    assert "image side (pixels)" in text and "multiply-adds of one image (millions)" in text
    labels = ["".join(e.itertext()) for e in root.iter(svg + "text")]
    for name in series:  # the legend of each panel, with the exponent beside the name
        assert sum(label.strip().startswith(name + "   ~") for label in labels) == 2, labels
    assert "crossing:full:window" in lines
    assert any("full costs more than window" in label for label in labels)
    pairs = zip(draw_curves.LINES, draw_curves.MARKERS, strict=False)
    styles = {(line, marker) for line, marker in pairs}
    assert len(styles) == len(draw_curves.LINES)
    assert [*tmp_path.iterdir()] == [path]
    run(capsys, *argv, "--describe")
    assert path.read_bytes() == first
    mixing, total, crossings_ = (tmp_path / "cost.svg.txt").read_text().split("\n\n")
    for text, part in ((mixing, "mixing: MACs between tokens"), (total, "total: all MACs")):
        lines = text.split("\n")
        assert lines[0] == f"Curves of 3 series, log-log. Panel: {part}."
        assert lines[1] == (
            "Across: image side (pixels). Up: multiply-adds of one image (millions)."
        )
        assert ", most 224 (" in lines[2] and "(full at 224)." in lines[3]
    assert "least 0.04915 (full at 14), most 1888 (full at 224)." in mixing
    assert "Growth: window ~ tokens^1.00; full ~ tokens^2.00; pale:size=7 ~ tokens^1.50." in mixing
    assert "full costs more than window: from 64 pixels on" in crossings_
    assert "full costs more than window" in said


def test_without_matplotlib_nothing_is_counted(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(scaling, "row_of", lambda *args: pytest.fail("counted"))
    with pytest.raises(SpecError, match=r"pip install transom\[report\]"):
        sweep.main(["--mixer", "full", "--figure", str(tmp_path / "a.svg")])


BAD = {  # request: what the line must say
    "": "give a --backbone or a --mixer",
    "--backbone swin_tt": "did you mean 'swin_t'",
    "--mixer windw": "did you mean 'window'",
    "--mixer axial --heads 3": "even",
    "--mixer full full": "'full' is given twice",
    "--mixer full --values 0": "--values 0: expected a whole number from 1",
    "--mixer full --values 7x7": "--values 7x7",
    "--mixer full --over size": "no window, stripe or pale",
    "--mixer full --policy scale": "no window, stripe or pale",
    "--mixer full --over depth": "a mixer has no depth",
    "--mixer window --over size --policy scale": "--policy and --base-img",
    "--mixer full --over width --values 2/0": "a factor from 0.01 to 100",
    "--mixer full --over width --values 1/3": "1/3 x 4 heads is no whole number",
    "--backbone swin_t --over depth --values 0.25": "stage 1: 1/4 x 2 depth is no whole number",
    "--backbone cswin_t --over width --values 0.5": "stage 1",
    "--mixer full --img-size 224": "use --values",
    "--mixer full --figure cost.gif": "--figure cost.gif: expected a name ending in .png",
    "--mixer full --heads 96 --values 65536": "full on 65536x65536 pixels",
}


@pytest.mark.parametrize("request_", BAD)
def test_bad_requests_are_one_line(request_):
    with pytest.raises(SpecError) as error:
        sweep.main(request_.split())
    assert BAD[request_] in str(error.value) and "\n" not in str(error.value)


def test_as_a_user_calls_it():
    """Exit code 2 and one line, and neither help nor a misspelt name waits for torch."""
    block = (
        "import sys, runpy\n"
        "for name in ('torch', 'pandas', 'matplotlib'): sys.modules[name] = None\n"
        "runpy.run_module('analysis.sweep', run_name='__main__', alter_sys=False)\n"
    )

    def call(*argv):
        return subprocess.run(
            [sys.executable, "-c", block, *argv], cwd=ROOT, capture_output=True, text=True
        )

    done = call("--help")
    assert done.returncode == 0 and "usage: python -m analysis.sweep" in done.stdout
    done = call("--backbone", "swin_t/3=pal")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "stage 3" in done.stderr and "did you mean 'pale'" in done.stderr


@pytest.mark.slow
def test_the_promise_at_its_full_size(capsys):
    """224 to 2048 pixels, every mixer and the backbones of each exponent."""
    found = data(capsys, "--mixer", *names(), "--backbone", "swin_t", "full_t", "pale_t")
    powers = EXPONENTS | {"swin_t": 1, "full_t": 2, "pale_t": 1.5}
    for fit in found["exponents"]:
        assert fit["mixing"] == pytest.approx(powers[fit["series"]], abs=0.01)
    assert all(row["agree"] for row in found["rows"]) and len(found["rows"]) == 110
